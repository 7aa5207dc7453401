"""One image: background, person, what stands in front, and the exact truth about it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from occluded_reid.synthetic.occluders.styles import Use
from occluded_reid.synthetic.paint.canvas import Layer, Point, ellipse
from occluded_reid.synthetic.paint.texture import sample_noise
from occluded_reid.synthetic.person.appearance import Appearance
from occluded_reid.synthetic.person.pedestrian import draw_pedestrian
from occluded_reid.synthetic.person.pose import Pose, sample_arms, sample_pose
from occluded_reid.synthetic.person.wardrobe import build_appearance
from occluded_reid.synthetic.plan import SPLITS, PlannedImage
from occluded_reid.synthetic.scene import scenery
from occluded_reid.synthetic.scene.camera import Camera, build_camera, develop
from occluded_reid.synthetic.scene.obstruction import NEIGHBORS, Scene, obstruct
from occluded_reid.synthetic.streams import Rng, Stream, bernoulli, make_rng, uniform
from occluded_reid.synthetic.truth import Truth, measure_masks

SUPERSAMPLING = 1.5
"""Images are drawn this much larger than they are stored."""


@dataclass(frozen=True)
class Rendering:
    """A finished image."""

    image: np.ndarray  # (h, w, 3) uint8 RGB
    person: np.ndarray  # (h, w) bool, the person's silhouette as if nothing stood in front
    covered: np.ndarray  # (h, w) bool, pixels of the occluders
    truth: Truth
    quality: int  # JPEG quality of its camera


@dataclass(frozen=True)
class Track:
    """What all images of one person and one camera share."""

    look: Appearance  # the person with the belongings that this camera sees
    yaw: float  # direction of the walk (radians)
    arms: tuple[str, str]  # modes of the left and the right arm
    position: float  # where on the background, in [0, 1]
    exposure: float  # factor on the brightness


def sample_track(seed: int, identity: int, camera: int) -> Track:
    """Sample how an identity passes a camera."""
    rng = make_rng(seed, Stream.TRACK, identity, camera)
    look = build_appearance(identity, seed)
    if bernoulli(rng, 0.1):
        look = replace(look, bag=None)
    if bernoulli(rng, 0.2):
        look = replace(look, headwear=None)
    if look.upper.kind in ("jacket", "coat") and bernoulli(rng, 0.15):
        look = replace(look, upper=replace(look.upper, open_front=not look.upper.open_front))
    view = build_camera(seed, camera)
    walk = view.walk + (np.pi if bernoulli(rng, 0.5) else 0.0)
    return Track(
        look=look,
        yaw=float(walk + rng.normal(0, 0.4)),
        arms=sample_arms(rng),
        position=uniform(rng, 0.04, 0.96),
        exposure=1 + uniform(rng, -0.2, 0.15) * view.variety,
    )


def render(planned: PlannedImage, seed: int) -> Rendering:
    """Draw one image; its pixels depend on the arguments alone."""
    address = SPLITS.index(planned.split), planned.identity, planned.camera, planned.index
    rng = make_rng(seed, Stream.IMAGE, *address)
    camera = build_camera(seed, planned.camera)
    track = sample_track(seed, planned.identity, planned.camera)
    height = int(np.clip(round(camera.height * uniform(rng, 0.85, 1.15)), 64, 256))
    width = int(np.clip(round(height * uniform(rng, 0.34, 0.52)), 28, 128))
    canvas = round(height * SUPERSAMPLING), round(width * SUPERSAMPLING)
    pose = sample_pose(rng, track.yaw + float(rng.normal(0, 0.15)), camera.pitch, track.arms)
    foot, scale = _place_person(rng, canvas, track.look.body.height)
    person = draw_pedestrian(canvas, track.look, pose, foot, scale, camera.light, rng)
    _crumple(person, camera.variety, rng)
    ground = _cut_background(rng, planned.camera, seed, track, canvas)
    scenery.scatter_clutter(ground, round(26 * camera.variety), rng)
    if bernoulli(rng, 0.3 * camera.variety):
        _add_passer_by(ground, planned.identity, seed, camera, foot, scale, rng)
    _cast_shadow(ground, camera, foot, scale, pose)
    _cover(ground, person)
    use: Use = "training" if planned.split == "bounding_box_train" else "test"
    scene = Scene(person, foot, scale, camera, planned.identity, seed, (height, width))
    front = obstruct(scene, planned.occlusion, use, rng)
    _cover(ground, front.layer)
    small = cv2.resize(ground, (width, height), interpolation=cv2.INTER_AREA)
    image = develop(small, camera, track.exposure * uniform(rng, 0.97, 1.03), rng)
    truth = Truth(
        path=planned.path, identity=planned.identity, camera=planned.camera, split=planned.split,
        size=(width, height), occluders=front.occluders, occlusion=planned.occlusion,
        **measure_masks(front.person, front.covered),
    )  # fmt: skip
    return Rendering(image, front.person, front.covered, truth, camera.quality)


def _cover(ground: np.ndarray, layer: Layer) -> None:
    """Lay a layer over the image, (H, W, 3) float32, in place."""
    ground *= (1 - layer.alpha)[..., None]
    ground += layer.color


def _crumple(person: Layer, variety: float, rng: Rng) -> None:
    """Give the person folds, and light that falls unevenly."""
    height, width = person.size
    tone = np.ones((height, width), np.float32)
    for cells, stretch, most in (((4, 6), 2, 0.12), ((12, 20), 2, 0.16), ((40, 64), 1, 0.16)):
        cell = cells[int(rng.integers(0, 2))]
        depth = np.float32(uniform(rng, 0.03, most) * variety)
        tone += depth * sample_noise(rng, (height, width), cell, stretch)
    across, down = (np.linspace(-1, 1, length, dtype=np.float32) for length in (width, height))
    tone *= 1 + np.float32(uniform(rng, -0.3, 0.3) * variety) * across
    tone *= 1 + np.float32(uniform(rng, -0.3, 0.1) * variety) * down[:, None]
    person.color *= np.clip(tone, 0.25, 1.6)[..., None]


def _add_passer_by(
    ground: np.ndarray, identity: int, seed: int, camera: Camera, foot: Point, scale: float,
    rng: Rng,
) -> None:  # fmt: skip
    """Put another person behind."""
    height, width = ground.shape[:2]
    look = build_appearance(identity + int(rng.integers(1, NEIGHBORS)), seed)
    pose = sample_pose(rng, uniform(rng, 0, 2 * np.pi), camera.pitch)
    at = uniform(rng, 0, 1) * width, foot[1] - uniform(rng, 0, 0.3) * height
    far = uniform(rng, 0.45, 0.95)
    _cover(ground, draw_pedestrian((height, width), look, pose, at, scale * far, camera.light, rng))


def _place_person(rng: Rng, canvas: tuple[int, int], body_height: float) -> tuple[Point, float]:
    """Sample where in the detector's box the person stands, and how large: foot and scale."""
    height, width = canvas
    scale = height * uniform(rng, 0.84, 1.02) / body_height
    x, y = 0.5 + float(rng.normal(0, 0.06)), uniform(rng, 0.9, 1.0)
    return (width * x, height * y), scale


def _cut_background(
    rng: Rng, camera: int, seed: int, track: Track, canvas: tuple[int, int]
) -> np.ndarray:
    """Cut the window behind the person out of the background, (H, W, 3) float32."""
    height = uniform(rng, 300, 360)
    width = height * canvas[1] / canvas[0]
    top = uniform(rng, 10, scenery.HEIGHT - height)
    left = np.clip(track.position + rng.normal(0, 0.03), 0, 1) * (scenery.WIDTH - width)
    rows, columns = slice(int(top), int(top + height)), slice(int(left), int(left + width))
    window = scenery.render_background(seed, camera)[rows, columns]
    return cv2.resize(window, canvas[::-1], interpolation=cv2.INTER_LINEAR).astype(np.float32)


def _cast_shadow(ground: np.ndarray, camera: Camera, foot: Point, scale: float, pose: Pose) -> None:
    """Darken the ground around the feet, away from the light."""
    shade = Layer(*ground.shape[:2])
    away = -camera.light.side * camera.light.contrast
    flat = 0.05 + 0.2 * float(np.sin(pose.pitch))
    for reach, strength in ((0.26, 0.32), (0.55 + abs(away), 0.26)):
        center = (foot[0] + away * reach * scale, foot[1])
        shape = ellipse(shade.size, center, reach * scale, flat * scale)
        soft = np.clip(shape.mask * (1.25 - np.hypot(shape.across, 2 * shape.along - 1)), 0, 1)
        shade.paint(shape.with_mask(soft.astype(np.float32)), (0.0, 0.0, 0.0), strength)
    ground *= (1 - shade.alpha)[..., None]
