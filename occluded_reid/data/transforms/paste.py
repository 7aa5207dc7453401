"""Pasting a cut-out over the picture of a person, as things stand before people in the wild.

A picture of a person-sized box has no silhouette. In its place stands the *person zone*: the full
height of the picture and the middle 60 % of its width, where a detector's box holds the person.

Shapes: pictures are (H, W, 3) uint8 RGB, cut-outs (h, w, 4) uint8 RGBA, masks (H, W) bool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from occluded_reid.data.transforms.occluder_cutouts import Cutout

PERSON_COLUMNS = (0.2, 0.8)
COVERED_RANGE = (0.25, 0.55)
"""Covered fractions of the person zone that an occluded picture should have."""
SHARES = {"horizontal": 0.5, "vertical": 0.25, "pedestrian": 0.25}
"""How often each occlusion is pasted, among those that the cut-outs allow."""

_TRIES = 24
_MOST_ENLARGED = 2.0  # a cut-out of few pixels stays small instead of becoming a blur
_LIGHT = (0.6, 1.8)  # range of the factor that brings a cut-out nearer to the picture's light


class Place(NamedTuple):
    """Where and how large a cut-out is pasted, in pixels; it may reach over the edges."""

    top: int
    left: int
    height: int
    width: int


class Pasted(NamedTuple):
    """An occluded picture.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        covered: (H, W) bool, where more than half of a pixel is covered.
        cutout: what was pasted.
    """

    pixels: np.ndarray
    covered: np.ndarray
    cutout: Cutout


def person_zone(size: tuple[int, int]) -> np.ndarray:
    """Where the person is taken to be in a picture of (H, W) pixels; (H, W) bool."""
    zone = np.zeros(size, bool)
    low, high = (round(share * size[1]) for share in PERSON_COLUMNS)
    zone[:, low : max(high, low + 1)] = True
    return zone


def paste_one(
    image: np.ndarray, cutouts: Mapping[str, Sequence[Cutout]], rng: np.random.Generator
) -> Pasted:
    """Paste a cut-out, anew until about the wished part of the person zone is covered.

    Args:
        image: (H, W, 3) uint8.
        cutouts: the choice for each occlusion (a key of :data:`SHARES`), each kind equally likely.
        rng: chance.

    Returns:
        The first try within :data:`COVERED_RANGE`, else the one that comes closest to it.
    """
    shares = np.array([SHARES[occlusion] for occlusion in cutouts])
    choice = list(cutouts.values())[int(rng.choice(len(shares), p=shares / shares.sum()))]
    kinds = sorted({cutout.kind for cutout in choice})
    zone = person_zone(image.shape[:2])
    best, least_miss = None, np.inf
    for _ in range(_TRIES):
        kind = kinds[int(rng.integers(len(kinds)))]
        same = [cutout for cutout in choice if cutout.kind == kind]
        pasted = _paste(image, same[int(rng.integers(len(same)))], rng)
        fraction = float(pasted.covered[zone].mean())
        miss = max(COVERED_RANGE[0] - fraction, fraction - COVERED_RANGE[1])
        if best is None or miss < least_miss:
            best, least_miss = pasted, miss
        if miss <= 0:
            break
    assert best is not None
    return best


def _paste(image: np.ndarray, cutout: Cutout, rng: np.random.Generator) -> Pasted:
    size = (image.shape[0], image.shape[1])
    place = _PLACES[cutout.occlusion](cutout.pixels[..., 3] > 127, size, rng)
    pixels = cutout.pixels[:, ::-1] if rng.random() < 0.5 else cutout.pixels
    layer = _laid(pixels, place, size)
    alpha = layer[..., 3:]
    layer[..., :3] *= _light(image, cutout)
    mixed = image * (1 - alpha) + layer[..., :3]
    return Pasted(np.rint(mixed).clip(0, 255).astype(np.uint8), alpha[..., 0] > 0.5, cutout)


def _light(image: np.ndarray, cutout: Cutout) -> float:
    """Half of the way, as factors go, from the cut-out's mean brightness to the picture's."""
    own = cutout.pixels[..., :3][cutout.pixels[..., 3] > 127].mean()
    return float(np.clip(np.sqrt(image.mean() / max(own, 1.0)), *_LIGHT))


def _before_the_legs(mask: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> Place:
    """Something low: it hides the lower part of the body in the full width or a part of it."""
    scale = min(rng.uniform(0.3, 0.65) * size[0] / mask.shape[0], _MOST_ENLARGED)
    height, width = _scaled(mask, scale)
    sunk = rng.uniform(0.0, 0.15) * height
    middle = rng.uniform(0.2, 0.8) * size[1]
    room = max(width - size[1], 0) / 2  # a wide one may be shifted without an end in the picture
    left = middle - width / 2 + rng.uniform(-0.8, 0.8) * room
    return Place(round(size[0] - height + sunk), round(left), height, width)


def _upright(mask: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> Place:
    """Something from top to bottom that hides one side of the body or its middle."""
    thickness = mask.sum() / mask.shape[0]
    whole = rng.uniform(1.0, 1.4) * size[0] / mask.shape[0]
    thick = rng.uniform(0.2, 0.4) * size[1] / thickness
    height, width = _scaled(mask, min(max(whole, thick), _MOST_ENLARGED))
    top = size[0] - height + rng.uniform(0.0, 1.0) * max(height - size[0], 0)
    return Place(round(top), _across(width, size[1], rng), height, width)


def _beside(mask: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> Place:
    """Another person, about as large, to one side."""
    scale = min(rng.uniform(0.8, 1.1) * size[0] / mask.shape[0], _MOST_ENLARGED)
    height, width = _scaled(mask, scale)
    sunk = rng.uniform(0.0, 0.08) * height
    return Place(round(size[0] - height + sunk), _across(width, size[1], rng), height, width)


def _across(width: int, whole: int, rng: np.random.Generator) -> int:
    """Left edge of something of which at least a fifth is in the picture."""
    return round(rng.uniform(-0.8 * width, whole - 0.2 * width))


_PLACES = {"horizontal": _before_the_legs, "vertical": _upright, "pedestrian": _beside}


def _scaled(mask: np.ndarray, scale: float) -> tuple[int, int]:
    return max(1, round(scale * mask.shape[0])), max(1, round(scale * mask.shape[1]))


def _laid(pixels: np.ndarray, place: Place, size: tuple[int, int]) -> np.ndarray:
    """Return (H, W, 4) float32: premultiplied colours in 0-255, alpha in [0, 1]."""
    alpha = pixels[..., 3:] / np.float32(255)
    premultiplied = np.dstack([pixels[..., :3] * alpha, alpha])
    shrunk = place.height < pixels.shape[0]
    scaled = cv2.resize(
        premultiplied,
        (place.width, place.height),
        interpolation=cv2.INTER_AREA if shrunk else cv2.INTER_LINEAR,
    )
    layer = np.zeros((*size, 4), np.float32)
    y0, y1 = max(place.top, 0), min(place.top + place.height, size[0])
    x0, x1 = max(place.left, 0), min(place.left + place.width, size[1])
    if y0 < y1 and x0 < x1:
        layer[y0:y1, x0:x1] = scaled[
            y0 - place.top : y1 - place.top, x0 - place.left : x1 - place.left
        ]
    return layer
