"""Hedges, shrubs and tree trunks as occluders and as part of the scenery."""

from __future__ import annotations

import numpy as np

from occluded_reid.synthetic.paint.canvas import Layer, Region, ellipse, limb, loft, rectangle
from occluded_reid.synthetic.paint.palette import RGB, nearby
from occluded_reid.synthetic.paint.texture import noise
from occluded_reid.synthetic.streams import between

_LEAVES: tuple[RGB, ...] = ((56, 86, 44), (76, 104, 52), (46, 70, 46), (98, 116, 60), (104, 92, 48))
_BARK: tuple[RGB, ...] = ((92, 78, 64), (116, 104, 90), (70, 58, 50))


def _full(layer: Layer) -> Region:
    h, w = layer.size
    across = np.broadcast_to(np.linspace(-1, 1, w, dtype=np.float32)[None, :], (h, w))
    along = np.broadcast_to(np.linspace(0, 1, h, dtype=np.float32)[:, None], (h, w))
    return Region(0, 0, np.ones((h, w), np.float32), across, along)


def _foliage(layer: Layer, rng: np.random.Generator, mask: np.ndarray, ragged: float) -> None:
    """Leaves in light and shade where the mask is set, with a ragged edge.

    Args:
        layer: painted upon.
        rng: chance.
        mask: (H, W) soft mask, above 0.5 inside.
        ragged: how far the noise moves its edge.
    """
    colour = np.array(nearby(rng, _LEAVES[int(rng.integers(len(_LEAVES)))], 7), np.float32)
    cell = 4 if layer.height < 120 else 8
    clumps, leaves = noise(rng, mask.shape, 32), noise(rng, mask.shape, cell)
    edge = mask + ragged * (0.6 * leaves + 0.4 * clumps)
    region = _full(layer)
    light = 1.12 - 0.45 * region.along + 0.17 * clumps + 0.26 * leaves
    tint = colour * np.clip(light, 0.25, 1.9)[..., None]
    layer.paint(region.with_mask(np.clip((edge - 0.5) * 6, 0, 1).astype(np.float32)), tint)


def draw_hedge(layer: Layer, rng: np.random.Generator) -> None:
    """A cut hedge with a level top."""
    region = _full(layer)
    _foliage(layer, rng, np.clip(region.along * 9, 0, 1), 0.12)


def draw_planter(layer: Layer, rng: np.random.Generator) -> None:
    """Flowers and green in a concrete trough."""
    h, w = layer.size
    region = _full(layer)
    waves = 0.5 + 0.14 * np.sin(region.across * between(rng, 5, 9) + between(rng, 0, 6))
    _foliage(layer, rng, np.clip(region.along * 2.6 + waves - 0.35, 0, 1), 0.2)
    petals = np.array(((206, 70, 80), (226, 196, 84), (214, 150, 190)), np.float32)
    colour = petals[int(rng.integers(3))]
    for _ in range(int(rng.integers(5, 14))):
        spot = (between(rng, 0.05, 0.95) * w, between(rng, 0.12, 0.55) * h)
        layer.paint(ellipse(layer.size, spot, 0.022 * w + 1, 0.018 * h + 1), colour)
    trough = rectangle(layer.size, (0, 0.62 * h), (w, h + 2))
    if trough is not None:
        grey = (152 - 34 * trough.along + 6 * noise(rng, trough.mask.shape, 4))[..., None]
        layer.paint(trough, grey * np.array((1.0, 0.97, 0.92), np.float32))


def draw_shrub(layer: Layer, rng: np.random.Generator) -> None:
    """A wild shrub: round clumps that rise to different heights."""
    h, w = layer.size
    shape = Layer(h, w)
    for _ in range(int(rng.integers(5, 9))):
        centre = (between(rng, 0.05, 0.95) * w, between(rng, 0.42, 0.8) * h)
        clump = ellipse(
            shape.size, centre, between(rng, 0.18, 0.34) * w, between(rng, 0.25, 0.4) * h
        )
        shape.paint(clump, (0.0, 0.0, 0.0))
    shape.paint(rectangle(shape.size, (0, 0.7 * h), (w, h + 2)), (0.0, 0.0, 0.0))
    _foliage(layer, rng, shape.alpha, 0.22)


def _trunk(layer: Layer, rng: np.random.Generator, cell: int, stretch: int, depth: float) -> None:
    h, w = layer.size
    lean = between(rng, -0.06, 0.06) * w
    levels = [-1.0, 0.3 * h, 0.85 * h, h + 1.0]
    centres = [0.5 * w + lean, 0.5 * w, 0.5 * w, 0.5 * w]
    widths = [0.4 * w, 0.42 * w, 0.44 * w, 0.5 * w]
    trunk = loft(layer.size, levels, centres, widths)
    if trunk is None:
        return
    colour = np.array(nearby(rng, _BARK[int(rng.integers(len(_BARK)))], 6), np.float32)
    side = between(rng, -0.3, 0.3)
    shade = 1.05 - 0.4 * (trunk.across - side) ** 2
    bark = 1 + depth * noise(rng, trunk.mask.shape, cell, stretch)
    layer.paint(trunk, colour * (shade * bark)[..., None])


def draw_smooth_trunk(layer: Layer, rng: np.random.Generator) -> None:
    """The trunk of a beech or a plane: smooth with pale and dark spots."""
    _trunk(layer, rng, 16, 1, 0.12)
    h, w = layer.size
    for _ in range(3):
        scar = (between(rng, 0.3, 0.7) * w, between(rng, 0.1, 0.9) * h)
        layer.paint(ellipse(layer.size, scar, 0.1 * w, 0.02 * h), (60, 52, 46), 0.5, inside=True)


def draw_rough_trunk(layer: Layer, rng: np.random.Generator) -> None:
    """The furrowed trunk of an oak, with ivy at its foot."""
    _trunk(layer, rng, 4, 8, 0.24)
    h, w = layer.size
    for _ in range(2):
        start = (between(rng, 0.25, 0.75) * w, h)
        end = (between(rng, 0.2, 0.8) * w, between(rng, 0.3, 0.7) * h)
        layer.paint(
            limb(layer.size, start, end, 0.05 * w, 0.02 * w), (58, 84, 46), 0.8, inside=True
        )
