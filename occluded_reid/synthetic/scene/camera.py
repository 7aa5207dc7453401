"""The cameras: view, light, optics and electronics."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np

from occluded_reid.synthetic.paint.texture import Light, sample_noise
from occluded_reid.synthetic.streams import Rng, Stream, bernoulli, make_rng, uniform

CITY = range(1, 49)
"""Numbers of cameras that differ as those of a city do."""

ALIKE = range(49, 57)
"""Numbers of cameras that differ little: small sets can be learned in minutes."""


@dataclass(frozen=True)
class Camera:
    """One fixed camera."""

    variety: float  # how much its images differ from each other and from other cameras', at most 1
    pitch: float  # how far it looks down (radians)
    walk: float  # main direction in which people pass, as a yaw (radians); they walk both ways
    height: float  # mean height of its crops in pixels
    light: Light
    gains: np.ndarray  # (3,) white balance and exposure, factors on R, G, B
    gamma: float  # above 1 darkens the midtones
    contrast: float  # factor around middle gray
    saturation: float  # 0 is gray, 1 leaves colors as they are
    haze: float  # gray levels of stray light
    blur: float  # standard deviation of its optics in pixels
    noise: float  # standard deviation of the sensor's noise in gray levels
    motion: int  # longest motion blur in pixels
    quality: int


@functools.lru_cache(maxsize=64)
def build_camera(seed: int, number: int) -> Camera:
    """Build a camera of the data set of a seed."""
    rng = make_rng(seed, Stream.CAMERA, number)
    variety = 0.28 if number in ALIKE else 1.0

    def sample(low: float, high: float) -> float:
        middle, half = (low + high) / 2, (high - low) / 2 * variety
        return uniform(rng, middle - half, middle + half)

    warmth, tint, exposure = sample(-0.12, 0.12), sample(-0.04, 0.04), sample(0.7, 1.2)
    gains = exposure * np.array([1 + warmth, 1 + tint, 1 - warmth], np.float32)
    return Camera(
        variety=variety,
        pitch=uniform(rng, 0.02, 0.5),
        walk=uniform(rng, 0, 2 * np.pi),
        height=sample(60, 220),
        light=Light(side=uniform(rng, -1, 1), contrast=sample(0.1, 0.6)),
        gains=gains.astype(np.float32),
        gamma=sample(0.75, 1.35),
        contrast=sample(0.75, 1.3),
        saturation=sample(0.5, 1.1),
        haze=sample(0, 30),
        blur=uniform(rng, 0.3, 1.0),
        noise=uniform(rng, 2, 6),
        motion=int(rng.integers(0, 5)),
        quality=int(rng.integers(45, 92)),
    )


def develop(scene: np.ndarray, camera: Camera, exposure: float, rng: Rng) -> np.ndarray:
    """Turn the light of a scene, (h, w, 3) float32 RGB in [0, 255], into the camera's uint8 image.

    ``exposure`` is a factor on the brightness; ``rng`` samples noise and motion.
    """
    light = scene * (camera.gains * np.float32(exposure))
    gray = light.mean(axis=2, keepdims=True)
    light = gray + (light - gray) * np.float32(camera.saturation)
    light = np.clip(light / 255, 0, 1) ** np.float32(camera.gamma)
    light = (light - 0.5) * np.float32(255 * camera.contrast) + 127.5
    light = light * np.float32(1 - camera.haze / 255) + np.float32(camera.haze)
    light = cv2.GaussianBlur(light, (0, 0), camera.blur * uniform(rng, 0.8, 1.4))
    if camera.motion > 1 and bernoulli(rng, 0.4):
        light = cv2.blur(light, (int(rng.integers(2, camera.motion + 1)), 1))
    grain = np.dstack([sample_noise(rng, light.shape, 1) for _ in range(3)])
    light = light + np.float32(camera.noise) * grain
    return np.clip(np.rint(light), 0, 255).astype(np.uint8)
