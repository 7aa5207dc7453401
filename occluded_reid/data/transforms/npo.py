"""NPO augmentation: pastes occluders over training images, with exact labels (FED Sec. 3.1).

NPO is the paper's acronym for non-pedestrian occlusion. Its "occlusion mask" holds 1 for a stripe
that shows the person; here that is called visibility.

Shapes: B images (3, H, W) in 0-255, patches (h, w, 3) uint8, P stripes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from fastreid.config import CfgNode

from occluded_reid.config import check_ranges
from occluded_reid.data.transforms.color import adjust_color
from occluded_reid.data.transforms.occluder_patches import Patch, load_occlusion_sets


class Rectangle(NamedTuple):
    """A rectangle in an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def select(self, image: torch.Tensor) -> torch.Tensor:
        """Return a view of the part of ``image`` (3, H, W) inside the rectangle."""
        top, left, height, width = self
        return image[:, top : top + height, left : left + width]


class PasteParams(NamedTuple):
    """Random choices for an occluded view: ``window`` of a patch goes over ``rectangle``."""

    patch: int  # index into the occlusion set
    vertical: bool
    rectangle: Rectangle
    window: Rectangle
    mirrored: bool
    factors: Sequence[float]  # of brightness, contrast and saturation


def sample_rectangle(
    vertical: bool, image_size: tuple[int, int], extent: Sequence[float], rng: np.random.Generator
) -> Rectangle:
    """Choose where to paste a patch: in a corner, along the whole of one side.

    A vertical occluder is (H, U[lo W, hi W]), a horizontal one (U[lo H, hi H], W). ``extent`` is
    lo and hi, 1/4 and 1/2 in the paper; they are rounded inwards to whole pixels.
    """
    height, width = image_size
    whole = width if vertical else height
    low = math.ceil(extent[0] * whole)
    high = max(low, math.floor(extent[1] * whole))
    size = int(rng.integers(low, high + 1))
    rows, columns = (height, size) if vertical else (size, width)
    at_bottom, at_right = int(rng.integers(2)), int(rng.integers(2))
    return Rectangle(at_bottom * (height - rows), at_right * (width - columns), rows, columns)


def sample_window(
    size: tuple[int, int], min_fraction: float, rng: np.random.Generator
) -> Rectangle:
    """Choose a window in (h, w) pixels; each side is U[min_fraction, 1] of the whole."""
    rows, columns = (max(1, round(rng.uniform(min_fraction, 1.0) * side)) for side in size)
    top, left = int(rng.integers(size[0] - rows + 1)), int(rng.integers(size[1] - columns + 1))
    return Rectangle(top, left, rows, columns)


def sample_factors(strength: Sequence[float], rng: np.random.Generator) -> tuple[float, ...]:
    """Choose factors of brightness, contrast and saturation, each from U[1 - s, 1 + s]."""
    return tuple(rng.uniform(max(0.0, 1 - s), 1 + s) for s in strength)


def resize(pixels: np.ndarray, height: int, width: int) -> torch.Tensor:
    """Resize (h, w, 3) uint8 to (3, height, width) uint8; the aspect ratio may change."""
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return F.interpolate(planes, size=(height, width), mode="bilinear", antialias=True)[0]


def label_stripes(
    rectangles: np.ndarray | Rectangle, image_size: tuple[int, int], num_stripes: int,
    covered: float = 0.75,
) -> torch.Tensor:  # fmt: skip
    """Label each stripe: 0 where more than ``covered`` of its area is pasted over, else 1.

    The paper measures the area on ``|x - x'|``. The rectangle gives the same area without the holes
    where patch and image happen to be equal. Stripe ``i`` is the rows ``[i H / P, (i + 1) H / P)``.
    ``rectangles`` (..., 4) of horizontal occluders give (..., P) float32; ``image_size`` is (H, W).

    >>> label_stripes(Rectangle(0, 0, 64, 128), (256, 128), 4)
    tensor([0., 1., 1., 1.])
    """
    height, width = image_size
    top, _, rows, columns = np.moveaxis(np.asarray(rectangles)[..., None], -2, 0)
    low = height * np.arange(num_stripes)  # in units of 1 / P pixel, so that edges are integers
    bottom = np.minimum((top + rows) * num_stripes, low + height)
    overlap = np.maximum(0, bottom - np.maximum(top * num_stripes, low))
    return torch.from_numpy(overlap * columns / (height * width) <= covered).float()


@dataclass(frozen=True)
class NpoAugmentation:
    """Adds an occluded view and its labels to a sample: NPO augmentation (FED Sec. 3.1)."""

    patches: Sequence[Patch]  # the occlusion set
    pair: bool = True  # keep the image and add occluded_images; else occlude the image itself
    prob: float = 1.0  # probability of an occlusion; in a pair, one view is always occluded
    vertical_ratio: float = 3.0  # a patch with a larger alpha = p_h / p_w is a vertical occluder
    extent: Sequence[float] = (0.25, 0.5)  # pasted fraction of H (horizontal) or W (vertical)
    crop: float = 0.5  # smallest side of the patch's random crop, as a fraction
    flip: float = 0.5  # probability that the patch is flipped
    jitter: Sequence[float] = (0.5, 0.5, 0.5)  # strength for brightness, contrast and saturation
    jitter_vertical: bool = True  # whether vertical patches are jittered too
    num_stripes: int = 4  # P
    covered: float = 0.75  # a stripe is occluded if more than this fraction of it is covered

    def __call__(self, sample: dict[str, Any], seed: int) -> dict[str, Any]:
        """Return a sample with ``images`` (3, H, W) and its occluded view and ``part_visibility``.

        ``part_visibility`` is (P,) float32; ``seed`` is the only source of randomness.
        """
        occluded, visibility = self.occlude(sample["images"], np.random.default_rng(seed))
        view = "occluded_images" if self.pair else "images"
        return {**sample, view: occluded, "part_visibility": visibility}

    def occlude(
        self, image: torch.Tensor, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the occluded view x' (3, H, W) and the visibility (P,) of its stripes."""
        size = (image.shape[-2], image.shape[-1])
        params = self.sample_params(size, rng)
        (visibility,) = self.label([params], size)
        if params is None:
            return image, visibility
        occluded = image.clone()
        params.rectangle.select(occluded).copy_(self.prepare_patch(params))
        return occluded, visibility

    def sample_params(self, size: tuple[int, int], rng: np.random.Generator) -> PasteParams | None:
        """Choose what to paste over an image of (H, W), or None; all patches are equally likely."""
        if not self.pair and rng.random() >= self.prob:
            return None
        index = int(rng.integers(len(self.patches)))
        patch = self.patches[index]
        vertical = patch.aspect > self.vertical_ratio
        rectangle = sample_rectangle(vertical, size, self.extent, rng)
        window = sample_window((patch.pixels.shape[0], patch.pixels.shape[1]), self.crop, rng)
        mirrored = bool(rng.random() < self.flip)
        keep_color = vertical and not self.jitter_vertical
        factors = (1.0, 1.0, 1.0) if keep_color else sample_factors(self.jitter, rng)
        return PasteParams(index, vertical, rectangle, window, mirrored, factors)

    def label(self, params: Sequence[PasteParams | None], size: tuple[int, int]) -> torch.Tensor:
        """Return the visibility (B, P) of the stripes of images of (H, W).

        A vertical occluder leaves half of a symmetric body visible, so all its stripes stay 1.
        """
        nothing = Rectangle(0, 0, 0, 0)
        covering = [nothing if each is None or each.vertical else each.rectangle for each in params]
        return label_stripes(np.array(covering), size, self.num_stripes, self.covered)

    def prepare_patch(self, params: PasteParams) -> torch.Tensor:
        """Crop, flip, resize and recolor a patch to (3, h, w) float32, whole numbers in 0-255.

        The paper changes colors before it resizes. Both are linear, so the order only decides how
        many pixels are changed.
        """
        top, left, rows, columns = params.window
        window = self.patches[params.patch].pixels[top : top + rows, left : left + columns]
        pixels = resize(window, params.rectangle.height, params.rectangle.width)
        if params.mirrored:
            pixels = pixels.flip(-1)
        return adjust_color(pixels, params.factors)


def build_npo(cfg: CfgNode) -> NpoAugmentation | None:
    """Build what ``INPUT.NPO`` describes, or None where it is off. Reads the occlusion set."""
    npo = cfg.INPUT.NPO
    if not npo.ENABLED:
        return None
    extent, jitter = list(npo.EXTENT), list(npo.JITTER)
    rules = {
        "PROB": (0 <= npo.PROB <= 1, "a probability in [0, 1]"),
        "VERTICAL_RATIO": (npo.VERTICAL_RATIO > 0, "above 0"),
        "EXTENT": (
            len(extent) == 2 and 0 < extent[0] <= extent[1] <= 1,
            "two increasing fractions in (0, 1]",
        ),
        "CROP": (0 < npo.CROP <= 1, "a fraction in (0, 1]"),
        "FLIP": (0 <= npo.FLIP <= 1, "a probability in [0, 1]"),
        "JITTER": (len(jitter) == 3 and min(jitter) >= 0, "three numbers of at least 0"),
        "NUM_STRIPES": (npo.NUM_STRIPES >= 1, "at least 1"),
        "COVERED": (0 <= npo.COVERED <= 1, "a fraction in [0, 1]"),
    }
    check_ranges("INPUT.NPO", npo, rules)
    options = {field.name: npo[field.name.upper()] for field in fields(NpoAugmentation)[2:]}
    return NpoAugmentation(load_occlusion_sets(npo.OCCLUDERS), npo.MODE == "pair", **options)
