"""Place occluders and other pedestrians in front of a person."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from occluded_reid.synthetic.occluders.styles import ORIENTATION, Use, paint_occluder
from occluded_reid.synthetic.paint.canvas import Layer, Point
from occluded_reid.synthetic.person.pedestrian import draw_pedestrian
from occluded_reid.synthetic.person.pose import sample_pose
from occluded_reid.synthetic.person.wardrobe import build_appearance
from occluded_reid.synthetic.scene.camera import Camera
from occluded_reid.synthetic.streams import Rng, bernoulli, choose, uniform
from occluded_reid.synthetic.truth import Box, Occluder, bound_mask, measure_visible_fraction

VISIBLE_RANGE = (0.48, 0.88)
"""Visible fractions that an occluded image should have."""

_TRIES = 8
NEIGHBORS = 60
_HORIZONTAL = {
    "car": 26, "bicycle": 6, "fence": 15, "wall": 13, "board": 13, "bush": 17, "umbrella": 10,
}  # fmt: skip
_VERTICAL = {"pole": 28, "sign": 24, "trunk": 26, "pillar": 22}
# Width over height of the kinds that must not be stretched.
_ASPECTS = {"car": (1.9, 2.6), "bicycle": (1.5, 1.8), "umbrella": (1.7, 2.2)}


@dataclass(frozen=True)
class Scene:
    """The person before anything is placed in front."""

    person: Layer  # the painted person, on the supersampled canvas
    foot: Point  # where the person stands, in canvas pixels
    scale: float  # canvas pixels per meter
    camera: Camera
    identity: int
    seed: int
    size: tuple[int, int]  # height and width of the stored image


@dataclass(frozen=True)
class Obstruction:
    """What stands in front."""

    layer: Layer  # the painted occluder, on the supersampled canvas
    person: np.ndarray  # (h, w) bool silhouette of the whole person in the stored image
    covered: np.ndarray  # (h, w) bool pixels of the occluder in the stored image
    occluders: tuple[Occluder, ...]  # its kind and box


def obstruct(scene: Scene, occlusion: str, use: Use, rng: Rng) -> Obstruction:
    """Place an occlusion of ``plan.OCCLUSIONS`` in front; ``use`` chooses the occluders' styles.

    Return the first try whose visible fraction is in :data:`VISIBLE_RANGE`, or the closest one.
    """
    person = downsample_mask(scene.person.alpha, scene.size)
    best = Obstruction(Layer(*scene.person.size), person, np.zeros_like(person), ())
    if occlusion == "none":
        return best
    places = {"horizontal": _place_horizontal, "vertical": _place_vertical}
    place = places.get(occlusion, _place_pedestrian)
    best_miss, box = np.inf, bound_mask(scene.person.alpha > 0.5)
    for _ in range(_TRIES):
        kind, layer = place(scene, box, use, rng)
        covered = downsample_mask(layer.alpha, scene.size)
        fraction = measure_visible_fraction(person, covered)
        miss = max(VISIBLE_RANGE[0] - fraction, fraction - VISIBLE_RANGE[1])
        if miss < best_miss:
            occluder = Occluder(kind, ORIENTATION.get(kind, "vertical"), bound_mask(covered))
            best, best_miss = Obstruction(layer, person, covered, (occluder,)), miss
        if miss <= 0:
            break
    return best


def downsample_mask(alpha: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return (h, w) bool: where a supersampled (H, W) alpha covers more than half of a pixel."""
    return cv2.resize(alpha, size[::-1], interpolation=cv2.INTER_AREA) > 0.5


def _place_pedestrian(scene: Scene, box: Box, use: Use, rng: Rng) -> tuple[str, Layer]:
    """Place another person, closer to the camera and to one side."""
    other = scene.identity + int(rng.integers(1, NEIGHBORS))
    closer = uniform(rng, 1.02, 1.22)
    side = 1 if bernoulli(rng, 0.5) else -1
    shift = side * uniform(rng, 0.2, 0.46) * scene.scale
    size = scene.person.size
    drop = (closer - 1) * uniform(rng, 0.6, 1.6) * 0.5 * size[0]
    foot = (scene.foot[0] + shift, scene.foot[1] + drop)
    walk = scene.camera.walk + (np.pi if bernoulli(rng, 0.5) else 0.0)
    pose = sample_pose(rng, float(walk + rng.normal(0, 0.5)), scene.camera.pitch)
    look, light = build_appearance(other, scene.seed), scene.camera.light
    return "pedestrian", draw_pedestrian(size, look, pose, foot, scene.scale * closer, light, rng)


def _place_horizontal(scene: Scene, box: Box, use: Use, rng: Rng) -> tuple[str, Layer]:
    """Place an object that hides the lower body, or an umbrella over the upper body."""
    kind = choose(rng, _HORIZONTAL)
    left, top, right, bottom = box
    canvas = scene.person
    cover = uniform(rng, 0.2, 0.43) * (bottom - top)
    if kind == "umbrella":
        height = cover * uniform(rng, 1.0, 1.3)
        y = top + 0.75 * cover - height
    else:
        y = bottom - cover
        height = cover + uniform(rng, 0.02, 0.12) * canvas.height
    width = max(right - left, 0.5 * canvas.width) * uniform(rng, 1.1, 1.9)
    if kind in _ASPECTS:
        width = height * uniform(rng, *_ASPECTS[kind])
    middle = (left + right) / 2 + uniform(rng, -0.5, 0.5) * max(width - 0.75 * (right - left), 0)
    return kind, _paint_and_place(scene, kind, (middle, y), (height, width), use, rng)


def _place_vertical(scene: Scene, box: Box, use: Use, rng: Rng) -> tuple[str, Layer]:
    """Place an upright object that hides one side of the body or its middle."""
    kind = choose(rng, _VERTICAL)
    left, _, right, _ = box
    canvas = scene.person
    width = uniform(rng, 0.26, 0.46) * max(right - left, 0.36 * canvas.width)
    if kind == "sign":
        width *= 1.9
    middle = uniform(rng, left + 0.12 * (right - left), right - 0.12 * (right - left))
    y = uniform(rng, -0.12, -0.02) * canvas.height
    height = canvas.height * uniform(rng, 1.05, 1.2) - y
    if kind == "sign" and bernoulli(rng, 0.5):
        y = uniform(rng, 0.0, 0.35) * canvas.height
    return kind, _paint_and_place(scene, kind, (middle, y), (height, width), use, rng)


def _paint_and_place(
    scene: Scene, kind: str, top: Point, size: tuple[float, float], use: Use, rng: Rng
) -> Layer:
    """Paint an occluder in the camera's light below a point, on a layer of the canvas's size."""
    occluder = paint_occluder(kind, rng, max(round(size[0]), 8), max(round(size[1]), 8), use)
    light = scene.camera.light
    slope = np.linspace(-1, 1, occluder.width, dtype=np.float32) * np.float32(light.side)
    occluder.color *= (1 + np.float32(0.25 * light.contrast) * slope)[None, :, None]
    layer = Layer(*scene.person.size)
    layer.composite(occluder, round(top[0] - size[1] / 2), round(top[1]))
    return layer
