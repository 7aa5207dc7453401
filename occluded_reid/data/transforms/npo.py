"""NPO augmentation: occluders pasted over training images, with exact labels (FED Sec. 3.1).

NPO is the paper's word for non-pedestrian occlusion. Its "occlusion mask" holds 1 for a stripe
that shows the person; here this is called visibility, and a stripe is a part.

Shapes: B images (3, H, W) in 0-255, patches (h, w, 3) uint8, P is the number of stripes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from fastreid.config import CfgNode

from occluded_reid.config import check_ranges
from occluded_reid.data.transforms.color import change_colours
from occluded_reid.data.transforms.occluder_patches import Patch, occlusion_set


class Rectangle(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


NOTHING = Rectangle(0, 0, 0, 0)

Factors = tuple[float, float, float]
"""Of brightness, contrast and saturation."""


class Pasting(NamedTuple):
    """What chance decides about an occluded view.

    Attributes:
        patch: its number in the occlusion set.
        vertical: whether it is a vertical occluder.
        rectangle: where it is pasted.
        window: the part of the patch that is pasted.
        mirrored: from left to right.
        factors: its change of colours.
    """

    patch: int
    vertical: bool
    rectangle: Rectangle
    window: Rectangle
    mirrored: bool
    factors: Factors


def draw_rectangle(
    vertical: bool,
    image_size: tuple[int, int],
    extent: tuple[float, float],
    rng: np.random.Generator,
) -> Rectangle:
    """Choose where a patch is pasted: flush in a corner, in one direction over the whole image.

    Args:
        vertical: (H, U[lo W, hi W]) for a vertical occluder, else (U[lo H, hi H], W).
        image_size: (H, W).
        extent: lo and hi; 1/4 and 1/2 in the paper. The bounds are whole pixels inside of it.
        rng: chance.
    """
    height, width = image_size
    whole = width if vertical else height
    least = math.ceil(extent[0] * whole)
    most = max(least, math.floor(extent[1] * whole))
    size = int(rng.integers(least, most + 1))
    rows, columns = (height, size) if vertical else (size, width)
    at_bottom, at_right = int(rng.integers(2)), int(rng.integers(2))
    return Rectangle(at_bottom * (height - rows), at_right * (width - columns), rows, columns)


def draw_window(size: tuple[int, int], least: float, rng: np.random.Generator) -> Rectangle:
    """Choose a window of (h, w) pixels; each of its sides is U[least, 1] of the whole's."""
    rows, columns = (max(1, round(rng.uniform(least, 1.0) * side)) for side in size)
    top, left = int(rng.integers(size[0] - rows + 1)), int(rng.integers(size[1] - columns + 1))
    return Rectangle(top, left, rows, columns)


def draw_factors(strength: Sequence[float], rng: np.random.Generator) -> Factors:
    """Choose how brightness, contrast and saturation change: each by U[1 - s, 1 + s]."""
    bright, contrast, saturation = (rng.uniform(max(0.0, 1 - s), 1 + s) for s in strength)
    return bright, contrast, saturation


def resize(pixels: np.ndarray, height: int, width: int) -> torch.Tensor:
    """Resize (h, w, 3) uint8 to (3, height, width) uint8, whatever its aspect."""
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return F.interpolate(planes, size=(height, width), mode="bilinear", antialias=True)[0]


def paste(image: torch.Tensor, patch: torch.Tensor, rectangle: Rectangle) -> torch.Tensor:
    """Return a copy of ``image`` (3, H, W) with ``patch`` over ``rectangle``."""
    top, left, height, width = rectangle
    occluded = image.clone()
    occluded[:, top : top + height, left : left + width] = patch
    return occluded


def stripe_visibility(
    rectangles: np.ndarray | Rectangle,
    image_size: tuple[int, int],
    num_stripes: int,
    covered: float = 0.75,
) -> torch.Tensor:
    """Label the stripes: 0 where more than ``covered`` of the area is pasted over, else 1.

    The paper finds the area from ``|x - x'|``; the rectangle gives the same without the holes where
    patch and image happen to agree. Stripe ``i`` is the rows ``[i H / P, (i + 1) H / P)``.

    Args:
        rectangles: (..., 4), what was pasted over, of horizontal occluders.
        image_size: (H, W).
        num_stripes: P.
        covered: fraction of a stripe.

    Returns:
        (..., P) float32.
    """
    height, width = image_size
    top, _, rows, columns = np.moveaxis(np.asarray(rectangles)[..., None], -2, 0)
    low = height * np.arange(num_stripes)  # in units of 1 / P pixel, so that edges are whole
    bottom = np.minimum((top + rows) * num_stripes, low + height)
    inside = np.maximum(0, bottom - np.maximum(top * num_stripes, low))
    return torch.from_numpy(inside * columns / (height * width) <= covered).float()


@dataclass(frozen=True)
class NpoAugmentation:
    """Adds an occluded view and its labels to samples (FED Sec. 3.1).

    Args:
        patches: the occlusion set.
        pair: keep the image and add ``occluded_images``; else the image itself is occluded.
        prob: how often the image is occluded where there is no pair; in a pair, one view always is.
        vertical_ratio: a patch of larger alpha = p_h / p_w is a vertical occluder.
        extent: range of the pasted part of H (horizontal) or W (vertical).
        crop: least side of the patch's random crop, a fraction.
        flip: probability to mirror the patch.
        jitter: strength of the patch's change of brightness, contrast and saturation.
        jitter_vertical: whether vertical patches are changed in colour too.
        num_stripes: P.
        covered: a stripe is occluded if more than this fraction of it is.
    """

    patches: Sequence[Patch]
    pair: bool = True
    prob: float = 1.0
    vertical_ratio: float = 3.0
    extent: tuple[float, float] = (0.25, 0.5)
    crop: float = 0.5
    flip: float = 0.5
    jitter: tuple[float, float, float] = (0.5, 0.5, 0.5)
    jitter_vertical: bool = True
    num_stripes: int = 4
    covered: float = 0.75

    def __call__(self, sample: dict[str, Any], seed: int) -> dict[str, Any]:
        """Return the sample with its occluded view and ``part_visibility`` (P,) float32.

        Args:
            sample: holds ``images`` (3, H, W); it is not changed.
            seed: of this draw, the only source of chance.
        """
        image = sample["images"]
        occluded, visibility = self.occlude(image, np.random.default_rng(seed))
        view = "occluded_images" if self.pair else "images"
        return {**sample, view: occluded, "part_visibility": visibility}

    def occlude(
        self, image: torch.Tensor, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return x' (3, H, W) and the visibility (P,) of its stripes."""
        size = (image.shape[-2], image.shape[-1])
        pasting = self.draw(size, rng)
        (visibility,) = self.visibility([pasting], size)
        if pasting is None:
            return image, visibility
        return paste(image, self.prepare(pasting), pasting.rectangle), visibility

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> Pasting | None:
        """Choose what is pasted over an image of (H, W); None for nothing.

        All patches are equally likely.
        """
        if not self.pair and rng.random() >= self.prob:
            return None
        number = int(rng.integers(len(self.patches)))
        patch = self.patches[number]
        vertical = patch.aspect > self.vertical_ratio
        rectangle = draw_rectangle(vertical, size, self.extent, rng)
        window = draw_window((patch.pixels.shape[0], patch.pixels.shape[1]), self.crop, rng)
        mirrored = bool(rng.random() < self.flip)
        keeps_colours = vertical and not self.jitter_vertical
        factors = (1.0, 1.0, 1.0) if keeps_colours else draw_factors(self.jitter, rng)
        return Pasting(number, vertical, rectangle, window, mirrored, factors)

    def visibility(self, pastings: Sequence[Pasting | None], size: tuple[int, int]) -> torch.Tensor:
        """Return the labels (B, P) of the stripes of images of (H, W).

        A vertical occluder leaves half of a symmetric body to see, so that all stripes stay 1.
        """
        over = [NOTHING if each is None or each.vertical else each.rectangle for each in pastings]
        return stripe_visibility(np.array(over), size, self.num_stripes, self.covered)

    def prepare(self, pasting: Pasting) -> torch.Tensor:
        """Give the patch its own crop, flip and colours, in the size of the rectangle.

        The paper changes colours before it resizes; both are linear, so the order only decides how
        many pixels are changed.

        Returns:
            (3, h, w) float32, whole numbers in 0-255.
        """
        top, left, rows, columns = pasting.window
        window = self.patches[pasting.patch].pixels[top : top + rows, left : left + columns]
        pixels = resize(window, pasting.rectangle.height, pasting.rectangle.width)
        if pasting.mirrored:
            pixels = pixels.flip(-1)
        return change_colours(pixels, pasting.factors)


def build_npo(cfg: CfgNode) -> NpoAugmentation | None:
    """Build what ``INPUT.NPO`` describes, None where it is off; the occlusion set is read at once.

    Raises:
        UserError: a value out of its range, or an occlusion set that cannot be used.
    """
    npo = cfg.INPUT.NPO
    if not npo.ENABLED:
        return None
    _check(npo)
    return NpoAugmentation(
        occlusion_set(npo.OCCLUDERS),
        pair=npo.MODE == "pair",
        prob=npo.PROB,
        vertical_ratio=npo.VERTICAL_RATIO,
        extent=(npo.EXTENT[0], npo.EXTENT[1]),
        crop=npo.CROP,
        flip=npo.FLIP,
        jitter=tuple(npo.JITTER),
        jitter_vertical=npo.JITTER_VERTICAL,
        num_stripes=npo.NUM_STRIPES,
        covered=npo.COVERED,
    )


def _check(npo: CfgNode) -> None:
    extent, jitter = list(npo.EXTENT), list(npo.JITTER)
    rules = {
        "PROB": (0 <= npo.PROB <= 1, "a probability in [0, 1]"),
        "VERTICAL_RATIO": (npo.VERTICAL_RATIO > 0, "above 0"),
        "EXTENT": (
            len(extent) == 2 and 0 < extent[0] <= extent[1] <= 1,
            "two rising fractions in (0, 1]",
        ),
        "CROP": (0 < npo.CROP <= 1, "a fraction in (0, 1]"),
        "FLIP": (0 <= npo.FLIP <= 1, "a probability in [0, 1]"),
        "JITTER": (len(jitter) == 3 and min(jitter) >= 0, "three numbers of at least 0"),
        "NUM_STRIPES": (npo.NUM_STRIPES >= 1, "at least 1"),
        "COVERED": (0 <= npo.COVERED <= 1, "a fraction in [0, 1]"),
    }
    check_ranges("INPUT.NPO", npo, rules)
