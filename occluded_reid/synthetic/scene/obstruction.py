"""Placing occluders and other pedestrians in front of a person."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from occluded_reid.synthetic.occluders.styles import ORIENTATION, Use, occluder_layer
from occluded_reid.synthetic.paint.canvas import Layer, Point
from occluded_reid.synthetic.person.pedestrian import draw_pedestrian
from occluded_reid.synthetic.person.pose import draw_pose
from occluded_reid.synthetic.person.wardrobe import appearance_of
from occluded_reid.synthetic.scene.camera import Camera
from occluded_reid.synthetic.streams import between, chance
from occluded_reid.synthetic.truth import Box, Occluder, mask_box, visible_fraction

VISIBLE_RANGE = (0.48, 0.88)
"""Visible fractions that an occluded picture should have."""

_TRIES = 8
_NEIGHBOURS = 60
_HORIZONTAL = ("car", "bicycle", "fence", "wall", "board", "bush", "umbrella")
_HORIZONTAL_SHARES = (0.26, 0.06, 0.15, 0.13, 0.13, 0.17, 0.10)
_VERTICAL = ("pole", "sign", "trunk", "pillar")
_VERTICAL_SHARES = (0.28, 0.24, 0.26, 0.22)
# Width over height of the box of a kind that must not be stretched.
_ASPECTS = {"car": (1.9, 2.6), "bicycle": (1.5, 1.8), "umbrella": (1.7, 2.2)}


@dataclass(frozen=True)
class Scene:
    """The person before anything is placed in front.

    Attributes:
        person: the painted person, on the supersampled canvas.
        foot: where the person stands, in canvas pixels.
        scale: canvas pixels per metre.
        camera: the camera.
        identity: who the person is.
        seed: the data set's seed.
        stored: height and width of the stored picture.
    """

    person: Layer
    foot: Point
    scale: float
    camera: Camera
    identity: int
    seed: int
    stored: tuple[int, int]


@dataclass(frozen=True)
class Obstruction:
    """What stands in front.

    Attributes:
        layer: the painted occluders, on the supersampled canvas.
        person: (h, w) bool silhouette of the whole person in the stored picture.
        covered: (h, w) bool pixels of the occluders in the stored picture.
        occluders: their kinds and boxes.
    """

    layer: Layer
    person: np.ndarray
    covered: np.ndarray
    occluders: tuple[Occluder, ...]


def clear_view(scene: Scene) -> Obstruction:
    """Nothing in front."""
    person = stored_mask(scene.person.alpha, scene.stored)
    return Obstruction(Layer(*scene.person.size), person, np.zeros_like(person), ())


def obstruct(scene: Scene, occlusion: str, use: Use, rng: np.random.Generator) -> Obstruction:
    """Place something in front, anew until about the wished part of the person is visible.

    Args:
        scene: the person.
        occlusion: ``"horizontal"``, ``"vertical"`` or ``"pedestrian"``.
        use: which styles of occluders to draw.
        rng: chance.

    Returns:
        The first try within :data:`VISIBLE_RANGE`, else the one that comes closest to it.
    """
    person = stored_mask(scene.person.alpha, scene.stored)
    box = mask_box(scene.person.alpha > 0.5)
    best, best_miss = clear_view(scene), np.inf
    for _ in range(_TRIES):
        front = _placed(scene, person, box, occlusion, use, rng)
        fraction = visible_fraction(front.person, front.covered)
        miss = max(VISIBLE_RANGE[0] - fraction, fraction - VISIBLE_RANGE[1])
        if miss < best_miss:
            best, best_miss = front, miss
        if miss <= 0:
            break
    return best


def stored_mask(alpha: np.ndarray, stored: tuple[int, int]) -> np.ndarray:
    """(h, w) bool: where a supersampled (H, W) alpha covers more than half of a stored pixel."""
    return cv2.resize(alpha, stored[::-1], interpolation=cv2.INTER_AREA) > 0.5


def _placed(
    scene: Scene, person: np.ndarray, box: Box, occlusion: str, use: Use, rng: np.random.Generator
) -> Obstruction:
    layer = Layer(*scene.person.size)
    if occlusion == "pedestrian":
        parts = [_pedestrian(scene, box, layer, rng)]
    elif occlusion == "horizontal":
        parts = [_horizontal(scene, box, layer, use, rng)]
    else:
        parts = [_vertical(scene, box, layer, use, rng)]
    covered = np.zeros_like(person)
    occluders = []
    for kind, alpha in parts:
        mask = stored_mask(alpha, scene.stored)
        covered |= mask
        orientation = ORIENTATION.get(kind, "vertical")
        occluders.append(Occluder(kind, orientation, mask_box(mask)))
    return Obstruction(layer, person, covered, tuple(occluders))


def _pedestrian(
    scene: Scene, box: Box, layer: Layer, rng: np.random.Generator
) -> tuple[str, np.ndarray]:
    """Another person, nearer to the camera and to one side."""
    offset = int(rng.integers(1, _NEIGHBOURS))
    other = scene.identity + offset
    look = appearance_of(other, scene.seed)
    nearer = between(rng, 1.02, 1.22)
    side = 1 if chance(rng, 0.5) else -1
    shift = side * between(rng, 0.2, 0.46) * scene.scale
    foot = (
        scene.foot[0] + shift,
        scene.foot[1] + (nearer - 1) * between(rng, 0.6, 1.6) * 0.5 * layer.height,
    )
    walk = scene.camera.walk + (np.pi if chance(rng, 0.5) else 0.0)
    pose = draw_pose(rng, float(walk + rng.normal(0, 0.5)), scene.camera.pitch)
    front = draw_pedestrian(
        layer.size, look, pose, foot, scene.scale * nearer, scene.camera.light, rng
    )
    _lay(layer, front, 0, 0)
    return "pedestrian", front.alpha


def _horizontal(
    scene: Scene, box: Box, layer: Layer, use: Use, rng: np.random.Generator
) -> tuple[str, np.ndarray]:
    """Something that hides the lower part of the body, or an umbrella over the upper part."""
    kind = _HORIZONTAL[int(rng.choice(len(_HORIZONTAL), p=_HORIZONTAL_SHARES))]
    left, top, right, bottom = box
    tall = bottom - top
    cover = between(rng, 0.2, 0.43) * tall
    if kind == "umbrella":
        high = cover * between(rng, 1.0, 1.3)
        upper = top + 0.75 * cover - high
    else:
        upper = bottom - cover
        high = cover + between(rng, 0.02, 0.12) * layer.height
    wide = max(right - left, 0.5 * layer.width) * between(rng, 1.1, 1.9)
    if kind in _ASPECTS:
        wide = high * between(rng, *_ASPECTS[kind])
    middle = (left + right) / 2 + between(rng, -0.5, 0.5) * max(wide - 0.75 * (right - left), 0)
    thing = occluder_layer(kind, rng, max(round(high), 8), max(round(wide), 8), use)
    return kind, _stand_before(scene, layer, thing, round(middle - wide / 2), round(upper))


def _vertical(
    scene: Scene, box: Box, layer: Layer, use: Use, rng: np.random.Generator
) -> tuple[str, np.ndarray]:
    """Something upright that hides one side of the body or its middle."""
    kind = _VERTICAL[int(rng.choice(len(_VERTICAL), p=_VERTICAL_SHARES))]
    left, top, right, bottom = box
    wide = between(rng, 0.26, 0.46) * max(right - left, 0.36 * layer.width)
    if kind == "sign":
        wide *= 1.9
    middle = between(rng, left + 0.12 * (right - left), right - 0.12 * (right - left))
    upper = between(rng, -0.12, -0.02) * layer.height
    high = layer.height * between(rng, 1.05, 1.2) - upper
    if kind == "sign" and chance(rng, 0.5):
        upper = between(rng, 0.0, 0.35) * layer.height
    thing = occluder_layer(kind, rng, max(round(high), 8), max(round(wide), 8), use)
    return kind, _stand_before(scene, layer, thing, round(middle - wide / 2), round(upper))


def _stand_before(scene: Scene, layer: Layer, thing: Layer, left: int, top: int) -> np.ndarray:
    """Lay an occluder in the camera's light onto the layer; returns its alpha there."""
    light = scene.camera.light
    slope = np.linspace(-1, 1, thing.width, dtype=np.float32) * np.float32(light.side)
    thing.colour *= (1 + np.float32(0.25 * light.contrast) * slope)[None, :, None]
    alone = Layer(*layer.size)
    _lay(alone, thing, left, top)
    _lay(layer, alone, 0, 0)
    return alone.alpha


def _lay(layer: Layer, thing: Layer, left: int, top: int) -> None:
    """Composite one layer over another at a place that may lie partly outside."""
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + thing.width, layer.width), min(top + thing.height, layer.height)
    if x0 >= x1 or y0 >= y1:
        return
    cut = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
    alpha = thing.alpha[cut]
    below = layer.colour[y0:y1, x0:x1]
    below += thing.colour[cut] - below * alpha[..., None]
    deep = layer.alpha[y0:y1, x0:x1]
    deep += (1 - deep) * alpha
