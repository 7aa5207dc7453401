"""Cloth patterns, folds, noise and the shading of round things.

Patterns are functions of surface coordinates in metres: ``u`` around the body or limb and ``v``
down along it; so the stripes of a sleeve match those of the chest, and shrink with distance.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np

from occluded_reid.synthetic.paint.canvas import Region
from occluded_reid.synthetic.streams import Stream, stream

PATTERNS = (
    "plain",
    "heather",
    "stripes",
    "pinstripes",
    "checks",
    "plaid",
    "dots",
    "camouflage",
    "gradient",
    "yoke",
    "band",
    "zigzag",
)
_FIELD = 1024


@dataclass(frozen=True)
class Light:
    """Where the light comes from.

    Attributes:
        side: -1 from the left, 1 from the right of the picture.
        contrast: 0 for an overcast sky, about 0.6 for low sun.
    """

    side: float
    contrast: float


@functools.cache
def noise_field(cell: int, stretch: int = 1) -> np.ndarray:
    """(1024, 1024) float32 smooth noise of mean 0 and deviation 1, the same in each process.

    Args:
        cell: size of its spots in pixels.
        stretch: how many times longer than wide the spots are, for folds and wood.
    """
    rng = stream(0, Stream.NOISE_FIELD, cell, stretch)
    rows, columns = max(_FIELD // (cell * stretch), 2), max(_FIELD // cell, 2)
    coarse = rng.standard_normal((rows, columns)).astype(np.float32)
    field = cv2.resize(coarse, (_FIELD, _FIELD), interpolation=cv2.INTER_CUBIC)
    return (field - field.mean()) / field.std()


def noise(
    rng: np.random.Generator, shape: tuple[int, ...], cell: int, stretch: int = 1
) -> np.ndarray:
    """A random cut (h, w) out of :func:`noise_field`; a shape larger than it is enlarged."""
    field = noise_field(cell, stretch)
    height, width = min(shape[0], _FIELD), min(shape[1], _FIELD)
    top = int(rng.integers(0, _FIELD - height + 1))
    left = int(rng.integers(0, _FIELD - width + 1))
    cut = field[top : top + height, left : left + width]
    if cut.shape != tuple(shape[:2]):
        cut = cv2.resize(cut, (shape[1], shape[0]))
    return cut


def round_shading(region: Region, light: Light, roundness: float = 1.0) -> np.ndarray:
    """(h, w, 1) brightness factors of a tube that stands where the region does.

    Args:
        region: its ``across`` gives the angle of the surface.
        light: direction and contrast.
        roundness: 1 for a full tube, less for something flatter.
    """
    across = region.across * np.float32(0.94 * roundness)
    facing = np.sqrt(1 - across * across)
    sun = np.maximum(across * np.float32(light.side) * 0.75 + facing * 0.66, 0)
    ambient = 0.72 + 0.28 * facing
    contrast = np.float32(light.contrast)
    return ((1 - contrast) * ambient + contrast * (0.45 + 0.85 * sun))[..., None]


def _wave(phase: np.ndarray, sharpness: float = 4.0) -> np.ndarray:
    """A square wave in [0, 1] with soft edges, of period 1."""
    return np.clip(0.5 + np.float32(sharpness) * np.sin(np.float32(2 * np.pi) * phase), 0, 1)


def _spots(u: np.ndarray, v: np.ndarray, frequency: float) -> np.ndarray:
    field = noise_field(32)
    rows = (np.asarray(v * frequency * 40).astype(np.int32)) % _FIELD
    columns = (np.asarray(u * frequency * 40).astype(np.int32)) % _FIELD
    return np.clip(field[rows, columns] * 3 + 0.3, 0, 1)


def pattern_weights(
    pattern: str, u: np.ndarray, v: np.ndarray, frequency: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """How much of the second and of the third colour shows at each point.

    Args:
        pattern: one of :data:`PATTERNS`.
        u: (h, w) metres around the body.
        v: (h, w) metres below the shoulder line or the waist.
        frequency: repeats per metre, 5 (broad) to 25 (fine).

    Returns:
        Two (h, w) arrays in [0, 1], or None where one colour is all.
    """
    zero = np.zeros((1, 1), np.float32)
    if pattern == "stripes":
        return _wave(v * frequency), zero
    if pattern == "pinstripes":
        return np.clip(np.sin(u * np.float32(2 * np.pi * frequency)) * 4 - 2.6, 0, 1), zero
    if pattern == "checks":
        return 0.5 * (_wave(v * frequency) + _wave(u * frequency)), zero
    if pattern == "plaid":
        broad = 0.5 * (_wave(v * frequency * 0.6) + _wave(u * frequency * 0.6))
        lines = np.maximum(
            np.clip(np.sin(v * np.float32(7.5 * frequency)) * 5 - 4, 0, 1),
            np.clip(np.sin(u * np.float32(7.5 * frequency)) * 5 - 4, 0, 1),
        )
        return broad, lines * 0.8
    if pattern == "dots":
        product = np.sin(u * np.float32(7 * frequency)) * np.sin(v * np.float32(7 * frequency))
        return np.clip(product * 5 - 2.2, 0, 1), zero
    if pattern == "camouflage":
        return _spots(u, v, 6.0), _spots(u + 3.1, v + 1.7, 6.0) * 0.8
    if pattern == "gradient":
        return np.clip(v * 1.7, 0, 1), zero
    if pattern == "yoke":
        return np.clip((0.17 - v) * 80, 0, 1), zero
    if pattern == "band":
        return np.clip((0.055 - np.abs(v - 0.24)) * 80, 0, 1), zero
    if pattern == "zigzag":
        return _wave(v * frequency * 0.7 + np.abs((u * 9) % 1 - 0.5)), zero
    return None
