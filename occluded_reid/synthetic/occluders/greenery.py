"""Hedges, shrubs and tree trunks as occluders and as part of the scenery."""

from __future__ import annotations

import numpy as np

from occluded_reid.synthetic.paint.canvas import Layer, Region, ellipse, limb, loft, rectangle
from occluded_reid.synthetic.paint.palette import RGB, jitter_color
from occluded_reid.synthetic.paint.texture import sample_noise
from occluded_reid.synthetic.streams import Rng, choose, uniform

_LEAVES: tuple[RGB, ...] = ((56, 86, 44), (76, 104, 52), (46, 70, 46), (98, 116, 60), (104, 92, 48))
_BARK: tuple[RGB, ...] = ((92, 78, 64), (116, 104, 90), (70, 58, 50))


def _cover(layer: Layer) -> Region:
    """Return the whole layer as a region."""
    h, w = layer.size
    across = np.broadcast_to(np.linspace(-1, 1, w, dtype=np.float32)[None, :], (h, w))
    along = np.broadcast_to(np.linspace(0, 1, h, dtype=np.float32)[:, None], (h, w))
    return Region(0, 0, np.ones((h, w), np.float32), across, along)


def _paint_foliage(layer: Layer, rng: Rng, mask: np.ndarray, ragged: float) -> None:
    """Paint leaves where the (H, W) mask is above 0.5; ``ragged`` is the noise of its edge."""
    color = np.array(jitter_color(rng, choose(rng, _LEAVES), 7), np.float32)
    cell = 4 if layer.height < 120 else 8
    clumps, leaves = sample_noise(rng, mask.shape, 32), sample_noise(rng, mask.shape, cell)
    edge = mask + ragged * (0.6 * leaves + 0.4 * clumps)
    region = _cover(layer)
    light = 1.12 - 0.45 * region.along + 0.17 * clumps + 0.26 * leaves
    tint = color * np.clip(light, 0.25, 1.9)[..., None]
    layer.paint(region.with_mask(np.clip((edge - 0.5) * 6, 0, 1).astype(np.float32)), tint)


def draw_hedge(layer: Layer, rng: Rng) -> None:
    """Draw a trimmed hedge with a level top."""
    region = _cover(layer)
    _paint_foliage(layer, rng, np.clip(region.along * 9, 0, 1), 0.12)


def draw_planter(layer: Layer, rng: Rng) -> None:
    """Draw flowers and leaves in a concrete trough."""
    h, w = layer.size
    region = _cover(layer)
    waves = 0.5 + 0.14 * np.sin(region.across * uniform(rng, 5, 9) + uniform(rng, 0, 6))
    _paint_foliage(layer, rng, np.clip(region.along * 2.6 + waves - 0.35, 0, 1), 0.2)
    color = choose(rng, ((206, 70, 80), (226, 196, 84), (214, 150, 190)))
    for _ in range(int(rng.integers(5, 14))):
        spot = (uniform(rng, 0.05, 0.95) * w, uniform(rng, 0.12, 0.55) * h)
        layer.paint(ellipse(layer.size, spot, 0.022 * w + 1, 0.018 * h + 1), color)
    trough = rectangle(layer.size, (0, 0.62 * h), (w, h + 2))
    gray = (152 - 34 * trough.along + 6 * sample_noise(rng, trough.mask.shape, 4))[..., None]
    layer.paint(trough, gray * np.array((1.0, 0.97, 0.92), np.float32))


def draw_shrub(layer: Layer, rng: Rng) -> None:
    """Draw a wild shrub: round clumps of different heights."""
    h, w = layer.size
    shape = Layer(h, w)
    for _ in range(int(rng.integers(5, 9))):
        center = (uniform(rng, 0.05, 0.95) * w, uniform(rng, 0.42, 0.8) * h)
        radii = uniform(rng, 0.18, 0.34) * w, uniform(rng, 0.25, 0.4) * h
        shape.paint(ellipse(shape.size, center, *radii), (0.0, 0.0, 0.0))
    shape.paint(rectangle(shape.size, (0, 0.7 * h), (w, h + 2)), (0.0, 0.0, 0.0))
    _paint_foliage(layer, rng, shape.alpha, 0.22)


def _paint_trunk(layer: Layer, rng: Rng, cell: int, stretch: int, depth: float) -> None:
    h, w = layer.size
    lean = uniform(rng, -0.06, 0.06) * w
    levels, centers = [-1.0, 0.3 * h, 0.85 * h, h + 1.0], [0.5 * w + lean, *[0.5 * w] * 3]
    trunk = loft(layer.size, levels, centers, [0.4 * w, 0.42 * w, 0.44 * w, 0.5 * w])
    color = np.array(jitter_color(rng, choose(rng, _BARK), 6), np.float32)
    side = uniform(rng, -0.3, 0.3)
    shade = 1.05 - 0.4 * (trunk.across - side) ** 2
    bark = 1 + depth * sample_noise(rng, trunk.mask.shape, cell, stretch)
    layer.paint(trunk, color * (shade * bark)[..., None])


def draw_smooth_trunk(layer: Layer, rng: Rng) -> None:
    """Draw the trunk of a beech or a plane tree: smooth, with pale and dark spots."""
    _paint_trunk(layer, rng, 16, 1, 0.12)
    h, w = layer.size
    for _ in range(3):
        scar = (uniform(rng, 0.3, 0.7) * w, uniform(rng, 0.1, 0.9) * h)
        layer.paint(ellipse(layer.size, scar, 0.1 * w, 0.02 * h), (60, 52, 46), 0.5, inside=True)


def draw_rough_trunk(layer: Layer, rng: Rng) -> None:
    """Draw the furrowed trunk of an oak, with ivy at its foot."""
    _paint_trunk(layer, rng, 4, 8, 0.24)
    h, w = layer.size
    for _ in range(2):
        start = (uniform(rng, 0.25, 0.75) * w, h)
        end = (uniform(rng, 0.2, 0.8) * w, uniform(rng, 0.3, 0.7) * h)
        ivy = limb(layer.size, start, end, 0.05 * w, 0.02 * w)
        layer.paint(ivy, (58, 84, 46), 0.8, inside=True)
