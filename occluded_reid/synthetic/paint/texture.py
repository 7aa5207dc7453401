"""Cloth patterns, prints, noise, and the shading of round surfaces.

Patterns are functions of surface coordinates in meters: ``u`` around the body or limb and ``v``
down along it. So the stripes of a sleeve match those of the chest, and shrink with distance.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np

from occluded_reid.synthetic.paint.canvas import Region
from occluded_reid.synthetic.streams import Rng, Stream, make_rng

_FIELD = 1024


@dataclass(frozen=True)
class Light:
    """Direction and contrast of the light."""

    side: float  # -1 from the left, 1 from the right of the image
    contrast: float  # 0 for an overcast sky, about 0.6 for low sun


@functools.cache
def build_noise_field(cell: int, stretch: int = 1) -> np.ndarray:
    """Build (1024, 1024) float32 smooth noise of mean 0 and deviation 1, equal in all processes.

    Its spots are ``cell`` pixels wide and ``stretch`` times as high, for folds and wood.
    """
    rng = make_rng(0, Stream.NOISE_FIELD, cell, stretch)
    rows, columns = max(_FIELD // (cell * stretch), 2), max(_FIELD // cell, 2)
    coarse = rng.standard_normal((rows, columns)).astype(np.float32)
    field = cv2.resize(coarse, (_FIELD, _FIELD), interpolation=cv2.INTER_CUBIC)
    return (field - field.mean()) / field.std()


def sample_noise(rng: Rng, shape: tuple[int, ...], cell: int, stretch: int = 1) -> np.ndarray:
    """Cut (h, w) at random out of :func:`build_noise_field`; a shape larger than it is enlarged."""
    height, width = min(shape[0], _FIELD), min(shape[1], _FIELD)
    if height == 0:  # an empty region leaves the generator as it is
        return np.zeros((0, 0), np.float32)
    field = build_noise_field(cell, stretch)
    top = int(rng.integers(0, _FIELD - height + 1))
    left = int(rng.integers(0, _FIELD - width + 1))
    cut = field[top : top + height, left : left + width]
    if cut.shape != tuple(shape[:2]):
        cut = cv2.resize(cut, (shape[1], shape[0]))
    return cut


def shade_tube(region: Region, light: Light) -> np.ndarray:
    """Return (h, w, 1) brightness factors of an upright tube in place of the region."""
    across = region.across * np.float32(0.94)
    facing = np.sqrt(1 - across * across)
    sun = np.maximum(across * np.float32(light.side) * 0.75 + facing * 0.66, 0)
    ambient = 0.72 + 0.28 * facing
    contrast = np.float32(light.contrast)
    return ((1 - contrast) * ambient + contrast * (0.45 + 0.85 * sun))[..., None]


def _square_wave(phase: np.ndarray) -> np.ndarray:
    """Return a square wave in [0, 1] with soft edges, of period 1."""
    return np.clip(0.5 + np.float32(4) * np.sin(np.float32(2 * np.pi) * phase), 0, 1)


def _sample_spots(u: np.ndarray, v: np.ndarray, frequency: float) -> np.ndarray:
    rows, columns = (np.asarray(x * frequency * 40).astype(np.int32) % _FIELD for x in (v, u))
    return np.clip(build_noise_field(32)[rows, columns] * 3 + 0.3, 0, 1)


def weigh_pattern(
    pattern: str, u: np.ndarray, v: np.ndarray, frequency: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the (h, w) weights in [0, 1] of the second and third color, None for one color.

    Args:
        pattern: such as ``"stripes"``; an unknown name means one color.
        u: (h, w) meters around the body.
        v: (h, w) meters below the shoulder line or the waist.
        frequency: repeats per meter, 5 (broad) to 25 (fine).
    """
    zero = np.zeros((1, 1), np.float32)
    if pattern == "stripes":
        return _square_wave(v * frequency), zero
    if pattern == "pinstripes":
        return np.clip(np.sin(u * np.float32(2 * np.pi * frequency)) * 4 - 2.6, 0, 1), zero
    if pattern == "checks":
        return 0.5 * (_square_wave(v * frequency) + _square_wave(u * frequency)), zero
    if pattern == "plaid":
        broad = 0.5 * (_square_wave(v * frequency * 0.6) + _square_wave(u * frequency * 0.6))
        rows, columns = (np.sin(axis * np.float32(7.5 * frequency)) * 5 - 4 for axis in (v, u))
        return broad, np.maximum(np.clip(rows, 0, 1), np.clip(columns, 0, 1)) * 0.8
    if pattern == "dots":
        product = np.sin(u * np.float32(7 * frequency)) * np.sin(v * np.float32(7 * frequency))
        return np.clip(product * 5 - 2.2, 0, 1), zero
    if pattern == "camouflage":
        return _sample_spots(u, v, 6.0), _sample_spots(u + 3.1, v + 1.7, 6.0) * 0.8
    if pattern == "gradient":
        return np.clip(v * 1.7, 0, 1), zero
    if pattern == "yoke":
        return np.clip((0.17 - v) * 80, 0, 1), zero
    if pattern == "band":
        return np.clip((0.055 - np.abs(v - 0.24)) * 80, 0, 1), zero
    if pattern == "zigzag":
        return _square_wave(v * frequency * 0.7 + np.abs((u * 9) % 1 - 0.5)), zero
    return None


def weigh_print(kind: str, across: np.ndarray, down: np.ndarray) -> np.ndarray | None:
    """Return the (h, w) opacity of a print in [0, 1], or None if the kind is ``"none"``.

    ``across`` and ``down`` are (h, w) meters from the middle of the print.
    """
    if kind == "box":
        return _soft_step(0.085 - np.abs(across)) * _soft_step(0.055 - np.abs(down))
    if kind == "disc":
        radius = np.hypot(across, down)
        return _soft_step(0.075 - radius) * (1 - 0.8 * _soft_step(0.035 - radius))
    if kind == "letters":
        row = _soft_step(0.032 - np.abs(down)) * _soft_step(0.105 - np.abs(across))
        return row * _soft_step(np.abs((across * 22) % 1 - 0.5) * 0.05 - 0.008)
    if kind == "triangle":
        return _soft_step(0.06 - np.abs(across) - 0.55 * down) * _soft_step(down + 0.06)
    if kind == "bars":
        rows = _soft_step(np.abs((down * 14) % 1 - 0.5) * 0.07 - 0.015)
        return rows * _soft_step(0.1 - np.abs(across)) * _soft_step(0.1 - np.abs(down))
    return None


def _soft_step(distance: np.ndarray) -> np.ndarray:
    """Return 1 where the distance to the edge, in meters, is positive; the edge is 1 cm soft."""
    return np.clip(distance * 120 + 0.5, 0, 1)
