"""One picture: background, person, what stands in front, and the exact truth about it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from occluded_reid.synthetic.occluders.styles import Use
from occluded_reid.synthetic.paint.canvas import Layer, Point, ellipse
from occluded_reid.synthetic.person.appearance import Appearance
from occluded_reid.synthetic.person.pedestrian import draw_pedestrian
from occluded_reid.synthetic.person.pose import Pose, draw_arms, draw_pose
from occluded_reid.synthetic.person.wardrobe import appearance_of
from occluded_reid.synthetic.plan import Picture
from occluded_reid.synthetic.scene import scenery
from occluded_reid.synthetic.scene.camera import Camera, camera_of, develop
from occluded_reid.synthetic.scene.obstruction import Obstruction, Scene, clear_view, obstruct
from occluded_reid.synthetic.sizes import SPLITS
from occluded_reid.synthetic.streams import Stream, between, chance, stream
from occluded_reid.synthetic.truth import (
    STRIPES,
    Truth,
    mask_box,
    stripe_coverage,
    stripe_sums,
    visible_fraction,
)

SUPERSAMPLING = 1.5
"""Pictures are drawn this much larger than they are stored."""


@dataclass(frozen=True)
class Rendering:
    """A finished picture.

    Attributes:
        image: (h, w, 3) uint8 RGB.
        person: (h, w) bool, the person's silhouette as if nothing stood in front.
        covered: (h, w) bool, pixels of the occluders.
        truth: what is stored about it.
        quality: JPEG quality of its camera.
    """

    image: np.ndarray
    person: np.ndarray
    covered: np.ndarray
    truth: Truth
    quality: int


@dataclass(frozen=True)
class Track:
    """What stays the same while one person passes one camera.

    Attributes:
        look: the person with the belongings that show here.
        yaw: direction of the walk (radians).
        arms: what the arms do.
        place: where on the background, in [0, 1].
        exposure: brightness of the moment.
    """

    look: Appearance
    yaw: float
    arms: tuple[str, str]
    place: float
    exposure: float


def track_of(seed: int, identity: int, camera: int) -> Track:
    """The passage of one identity before one camera."""
    rng = stream(seed, Stream.TRACK, identity, camera)
    look = appearance_of(identity, seed)
    if chance(rng, 0.1):
        look = replace(look, bag=None)
    if chance(rng, 0.2):
        look = replace(look, headwear=None)
    if look.upper.kind in ("jacket", "coat") and chance(rng, 0.15):
        look = replace(look, upper=replace(look.upper, open_front=not look.upper.open_front))
    walk = camera_of(seed, camera).walk + (np.pi if chance(rng, 0.5) else 0.0)
    return Track(
        look=look,
        yaw=float(walk + rng.normal(0, 0.4)),
        arms=draw_arms(rng),
        place=between(rng, 0.04, 0.96),
        exposure=between(rng, 0.95, 1.05),
    )


def render(picture: Picture, seed: int) -> Rendering:
    """Draw one picture.

    The pixels depend on the arguments alone.

    Args:
        picture: what to draw.
        seed: the data set's seed.
    """
    address = SPLITS.index(picture.split), picture.identity, picture.camera, picture.index
    rng = stream(seed, Stream.PICTURE, *address)
    camera = camera_of(seed, picture.camera)
    track = track_of(seed, picture.identity, picture.camera)
    height = int(np.clip(round(camera.height * between(rng, 0.85, 1.15)), 128, 256))
    width = int(np.clip(round(height * between(rng, 0.42, 0.58)), 56, 128))
    canvas = round(height * SUPERSAMPLING), round(width * SUPERSAMPLING)
    pose = draw_pose(rng, track.yaw + float(rng.normal(0, 0.15)), camera.pitch, track.arms)
    foot, scale = _stand(rng, canvas, track.look.body.height)
    person = draw_pedestrian(canvas, track.look, pose, foot, scale, camera.light, rng)
    ground = _background(rng, picture.camera, seed, track, canvas)
    _cast_shadow(ground, camera, foot, scale, pose)
    ground *= (1 - person.alpha)[..., None]
    ground += person.colour
    use: Use = "training" if picture.split == "bounding_box_train" else "test"
    view = Scene(person, foot, scale, camera, picture.identity, seed, (height, width))
    if picture.occlusion == "none":
        front = clear_view(view)
    else:
        front = obstruct(view, picture.occlusion, use, rng)
    ground *= (1 - front.layer.alpha)[..., None]
    ground += front.layer.colour
    small = cv2.resize(ground, (width, height), interpolation=cv2.INTER_AREA)
    image = develop(small, camera, track.exposure * between(rng, 0.97, 1.03), rng)
    return _with_truth(picture, image, front, camera.quality)


def _stand(
    rng: np.random.Generator, canvas: tuple[int, int], body_height: float
) -> tuple[Point, float]:
    """Where the person stands in the detector's box, and how large: foot point and scale."""
    height, width = canvas
    scale = height * between(rng, 0.83, 0.95) / body_height
    foot = (width * (0.5 + float(rng.normal(0, 0.045))), height * between(rng, 0.925, 0.985))
    return foot, scale


def _background(
    rng: np.random.Generator, camera: int, seed: int, track: Track, canvas: tuple[int, int]
) -> np.ndarray:
    """The window of the camera's background behind the person, (H, W, 3) float32."""
    wide = scenery.scene(seed, camera)
    tall = between(rng, 300, 360)
    broad = tall * canvas[1] / canvas[0]
    top = between(rng, 10, scenery.HEIGHT - tall)
    left = np.clip(track.place + rng.normal(0, 0.03), 0, 1) * (scenery.WIDTH - broad)
    rows = slice(int(top), int(top + tall))
    columns = slice(int(left), int(left + broad))
    window = cv2.resize(wide[rows, columns], canvas[::-1], interpolation=cv2.INTER_LINEAR)
    return window.astype(np.float32)


def _cast_shadow(ground: np.ndarray, camera: Camera, foot: Point, scale: float, pose: Pose) -> None:
    """Darken the ground around the feet, away from the light."""
    shade = Layer(*ground.shape[:2])
    away = -camera.light.side * camera.light.contrast
    flat = 0.05 + 0.2 * float(np.sin(pose.pitch))
    for reach, strength in ((0.26, 0.32), (0.55 + abs(away), 0.26)):
        centre = (foot[0] + away * reach * scale, foot[1])
        shape = ellipse(shade.size, centre, reach * scale, flat * scale)
        if shape is not None:
            soft = np.clip(shape.mask * (1.25 - np.hypot(shape.across, 2 * shape.along - 1)), 0, 1)
            shade.paint(shape.with_mask(soft.astype(np.float32)), (0.0, 0.0, 0.0), strength)
    ground *= (1 - shade.alpha)[..., None]


def _with_truth(picture: Picture, image: np.ndarray, front: Obstruction, quality: int) -> Rendering:
    truth = Truth(
        path=picture.path,
        identity=picture.identity,
        camera=picture.camera,
        split=picture.split,
        size=(image.shape[1], image.shape[0]),
        person_box=mask_box(front.person),
        visible_fraction=visible_fraction(front.person, front.covered),
        stripe_person_pixels=stripe_sums(front.person, STRIPES),
        stripe_visible_pixels=stripe_sums(front.person & ~front.covered, STRIPES),
        stripe_coverage=stripe_coverage(front.covered),
        occluders=front.occluders,
        occlusion=picture.occlusion,
    )
    return Rendering(image, front.person, front.covered, truth, quality)
