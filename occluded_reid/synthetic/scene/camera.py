"""The cameras: what they see of the light, and what their electronics make of it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np

from occluded_reid.synthetic.paint.texture import Light, noise
from occluded_reid.synthetic.streams import Stream, between, chance, stream

NUM_CAMERAS = 8


@dataclass(frozen=True)
class Camera:
    """One fixed camera.

    Attributes:
        pitch: how far it looks down (radians).
        walk: main direction of those who pass, as a yaw (radians); they walk both ways.
        height: mean height of its crops in pixels.
        light: the light of its place.
        gains: (3,) white balance and exposure, factors on R, G, B.
        gamma: above 1 darkens the middle tones.
        contrast: factor around middle grey.
        saturation: 0 is grey, 1 leaves colours as they are.
        haze: grey levels of stray light.
        blur: standard deviation of its optics in pixels.
        noise: standard deviation of the sensor's noise in grey levels.
        motion: longest motion blur in pixels.
        quality: JPEG quality.
    """

    pitch: float
    walk: float
    height: float
    light: Light
    gains: np.ndarray
    gamma: float
    contrast: float
    saturation: float
    haze: float
    blur: float
    noise: float
    motion: int
    quality: int


@functools.lru_cache(maxsize=64)
def camera_of(seed: int, number: int) -> Camera:
    """The camera of a number from 1 to :data:`NUM_CAMERAS`."""
    rng = stream(seed, Stream.CAMERA, number)
    warmth = between(rng, -0.045, 0.045)
    tint = between(rng, -0.015, 0.015)
    exposure = between(rng, 0.92, 1.06)
    gains = exposure * np.array([1 + warmth, 1 + tint, 1 - warmth], np.float32)
    return Camera(
        pitch=between(rng, 0.06, 0.42),
        walk=between(rng, 0, 2 * np.pi),
        height=between(rng, 150, 250),
        light=Light(side=between(rng, -1, 1), contrast=between(rng, 0.1, 0.45)),
        gains=gains.astype(np.float32),
        gamma=between(rng, 0.95, 1.08),
        contrast=between(rng, 0.92, 1.08),
        saturation=between(rng, 0.86, 1.1),
        haze=between(rng, 0, 8),
        blur=between(rng, 0.3, 1.0),
        noise=between(rng, 2, 6),
        motion=int(rng.integers(0, 5)),
        quality=int(rng.integers(45, 92)),
    )


def develop(
    picture: np.ndarray, camera: Camera, exposure: float, rng: np.random.Generator
) -> np.ndarray:
    """Turn the light of a scene into the camera's picture.

    Args:
        picture: (h, w, 3) float32 RGB in [0, 255].
        camera: whose optics and electronics.
        exposure: factor on the brightness of this moment.
        rng: chance for noise and motion.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    light = picture * (camera.gains * np.float32(exposure))
    grey = light.mean(axis=2, keepdims=True)
    light = grey + (light - grey) * np.float32(camera.saturation)
    light = np.clip(light / 255, 0, 1) ** np.float32(camera.gamma)
    light = (light - 0.5) * np.float32(255 * camera.contrast) + 127.5
    light = light * np.float32(1 - camera.haze / 255) + np.float32(camera.haze)
    light = cv2.GaussianBlur(light, (0, 0), camera.blur * between(rng, 0.8, 1.4))
    if camera.motion > 1 and chance(rng, 0.4):
        length = int(rng.integers(2, camera.motion + 1))
        light = cv2.blur(light, (length, 1))
    grain = np.dstack([noise(rng, light.shape, 1) for _ in range(3)])
    light = light + np.float32(camera.noise) * grain
    return np.clip(np.rint(light), 0, 255).astype(np.uint8)
