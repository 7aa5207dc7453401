"""Pastes a cut-out over an image of a person, where an occluder stands in the wild.

A crop of a person comes without a silhouette. The *person zone* takes its place: the full height of
the image and the middle 60 % of its width, where a detector's box holds the person.

Shapes: images are (H, W, 3) uint8 RGB, cut-outs (h, w, 4) uint8 RGBA, masks (H, W) bool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from occluded_reid.data.transforms.npo import Rectangle
from occluded_reid.data.transforms.occluder_cutouts import Cutout

PERSON_COLUMNS = (0.2, 0.8)
COVERED_RANGE = (0.25, 0.55)
"""Range of the covered fraction of the person zone to aim for."""
SHARES = {"horizontal": 0.5, "vertical": 0.25, "pedestrian": 0.25}
"""Relative frequency of each occlusion, among those that the cut-outs allow."""
_MAX_ATTEMPTS = 24
_MAX_SCALE = 2.0  # a small cut-out stays small instead of becoming a blur
_GAIN_RANGE = (0.6, 1.8)  # of the factor that matches a cut-out's brightness to the image


class OccludedImage(NamedTuple):
    """An image with a cut-out; ``covered`` is (H, W) bool, where alpha is above one half."""

    pixels: np.ndarray
    covered: np.ndarray
    cutout: Cutout


def person_zone(size: tuple[int, int]) -> np.ndarray:
    """Return where the person is assumed to be in an image of (H, W) pixels; (H, W) bool."""
    zone = np.zeros(size, bool)
    low, high = (round(share * size[1]) for share in PERSON_COLUMNS)
    zone[:, low : max(high, low + 1)] = True
    return zone


def paste_cutout(
    image: np.ndarray, cutouts: Mapping[str, Sequence[Cutout]], rng: np.random.Generator
) -> OccludedImage:
    """Paste a cut-out, and retry until a suitable part of the person zone is covered.

    ``cutouts`` are candidates by occlusion (a key of :data:`SHARES`); all kinds are equally likely.
    The result is the first attempt within :data:`COVERED_RANGE`, else the closest one.
    """
    shares = np.array([SHARES[occlusion] for occlusion in cutouts])
    candidates = list(cutouts.values())[int(rng.choice(len(shares), p=shares / shares.sum()))]
    kinds = sorted({cutout.kind for cutout in candidates})
    zone = person_zone(image.shape[:2])
    smallest_miss = np.inf
    for _ in range(_MAX_ATTEMPTS):
        kind = kinds[int(rng.integers(len(kinds)))]
        same_kind = [cutout for cutout in candidates if cutout.kind == kind]
        occluded = _paste(image, same_kind[int(rng.integers(len(same_kind)))], rng)
        fraction = float(occluded.covered[zone].mean())
        miss = max(COVERED_RANGE[0] - fraction, fraction - COVERED_RANGE[1])
        if miss < smallest_miss:
            best, smallest_miss = occluded, miss
        if miss <= 0:
            break
    return best


def _paste(image: np.ndarray, cutout: Cutout, rng: np.random.Generator) -> OccludedImage:
    size = (image.shape[0], image.shape[1])
    target = _PLACEMENTS[cutout.occlusion](cutout.pixels[..., 3] > 127, size, rng)
    pixels = cutout.pixels[:, ::-1] if rng.random() < 0.5 else cutout.pixels
    layer = _build_layer(pixels, target, size)
    alpha = layer[..., 3:]
    # the gain brings the cut-out halfway to the image's mean brightness
    brightness = cutout.pixels[..., :3][cutout.pixels[..., 3] > 127].mean()
    layer[..., :3] *= float(np.clip(np.sqrt(image.mean() / max(brightness, 1.0)), *_GAIN_RANGE))
    blended = np.rint(image * (1 - alpha) + layer[..., :3]).clip(0, 255).astype(np.uint8)
    return OccludedImage(blended, alpha[..., 0] > 0.5, cutout)


def _place_low(mask: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> Rectangle:
    """Place something low that hides all or a part of the legs."""
    scale = min(rng.uniform(0.3, 0.65) * size[0] / mask.shape[0], _MAX_SCALE)
    height, width = _scale_size(mask, scale)
    below = rng.uniform(0.0, 0.15) * height
    center = rng.uniform(0.2, 0.8) * size[1]
    spare = max(width - size[1], 0) / 2  # something wide may shift while its ends stay outside
    left = center - width / 2 + rng.uniform(-0.8, 0.8) * spare
    return Rectangle(round(size[0] - height + below), round(left), height, width)


def _place_upright(mask: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> Rectangle:
    """Place something from top to bottom that hides one side of the body or its middle."""
    thickness = mask.sum() / mask.shape[0]
    by_height = rng.uniform(1.0, 1.4) * size[0] / mask.shape[0]
    by_thickness = rng.uniform(0.2, 0.4) * size[1] / thickness
    height, width = _scale_size(mask, min(max(by_height, by_thickness), _MAX_SCALE))
    top = size[0] - height + rng.uniform(0.0, 1.0) * max(height - size[0], 0)
    return Rectangle(round(top), _sample_left(width, size[1], rng), height, width)


def _place_beside(mask: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> Rectangle:
    """Place another person of about the same size to one side."""
    scale = min(rng.uniform(0.8, 1.1) * size[0] / mask.shape[0], _MAX_SCALE)
    height, width = _scale_size(mask, scale)
    below = rng.uniform(0.0, 0.08) * height
    left = _sample_left(width, size[1], rng)
    return Rectangle(round(size[0] - height + below), left, height, width)


def _sample_left(width: int, image_width: int, rng: np.random.Generator) -> int:
    """Choose a left edge such that at least a fifth of the cut-out is inside the image."""
    return round(rng.uniform(-0.8 * width, image_width - 0.2 * width))


_PLACEMENTS = {"horizontal": _place_low, "vertical": _place_upright, "pedestrian": _place_beside}


def _scale_size(mask: np.ndarray, scale: float) -> tuple[int, int]:
    return max(1, round(scale * mask.shape[0])), max(1, round(scale * mask.shape[1]))


def _build_layer(pixels: np.ndarray, target: Rectangle, size: tuple[int, int]) -> np.ndarray:
    """Return (H, W, 4) float32: premultiplied colors in 0-255, alpha in [0, 1]."""
    top, left, height, width = target  # may extend beyond the image
    alpha = pixels[..., 3:] / np.float32(255)
    premultiplied = np.dstack([pixels[..., :3] * alpha, alpha])
    method = cv2.INTER_AREA if height < pixels.shape[0] else cv2.INTER_LINEAR
    scaled = cv2.resize(premultiplied, (width, height), interpolation=method)
    layer = np.zeros((*size, 4), np.float32)
    y0, y1 = max(top, 0), min(top + height, size[0])
    x0, x1 = max(left, 0), min(left + width, size[1])
    if y0 < y1 and x0 < x1:
        layer[y0:y1, x0:x1] = scaled[y0 - top : y1 - top, x0 - left : x1 - left]
    return layer
