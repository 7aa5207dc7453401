"""Augmentation of a batch of uint8 images, in place of fast-reid's image by image.

The random numbers are drawn by fast-reid's transforms and NPO augmentation themselves, in their
order, so that a seed gives the same pixels there and here. What they decide is applied in two
steps. Crop and flip happen while an image is copied into its batch, which costs little more than
the copy. Color, erasing and pasting follow.

Shapes: B images of (3, H, W), P stripes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.data.transforms import build_transforms
from torchvision import transforms as T

from occluded_reid.data.transforms.color import enhance
from occluded_reid.data.transforms.npo import NpoAugmentation, PasteParams, Rectangle
from occluded_reid.utils.errors import UserError

_UNSUPPORTED = ("AFFINE", "AUGMIX", "AUTOAUG", "CROP", "RPT")


class Enhancement(NamedTuple):
    """Arguments of :func:`~occluded_reid.data.transforms.color.enhance`."""

    order: tuple[int, ...]
    factors: tuple[float, ...]


class AugmentationParams(NamedTuple):
    """Random choices for one image; ``top`` and ``left`` locate the crop in the padded image."""

    top: int
    left: int
    mirrored: bool
    enhancement: Enhancement | None
    erased: Rectangle | None
    paste: PasteParams | None


class Augmentation:
    """The augmentation that ``INPUT`` describes.

    Args:
        transforms: fast-reid's, in its order, as :func:`build_augmentation` accepts them.
        npo: adds occluded views; None for none.

    Attributes:
        size: (H, W).
        resize: fast-reid's first transform, from a PIL image to a PIL image.
    """

    def __init__(self, transforms: Sequence[Any], npo: NpoAugmentation | None):
        by_type = {type(transform): transform for transform in transforms}
        self.resize = by_type[T.Resize]
        self.size: tuple[int, int] = tuple(self.resize.size)
        self._npo = npo
        self._erasing = by_type.get(T.RandomErasing)
        self._flip = by_type.get(T.RandomHorizontalFlip)
        self._jitter = by_type.get(T.RandomApply)
        self._padding = by_type[T.Pad].padding if T.Pad in by_type else 0
        # torchvision's get_params read nothing but the size of an image
        padded_sides = (side + 2 * self._padding for side in self.size)
        self._padded = torch.empty(3, *padded_sides, device="meta")
        self._image = torch.empty(3, *self.size, device="meta")

    def sample_params(self, seed: int) -> AugmentationParams:
        """Choose how to augment one image.

        Args:
            seed: of this image; PyTorch's global generator is seeded with it.
        """
        torch.default_generator.manual_seed(seed)
        top, left = T.RandomCrop.get_params(self._padded, self.size)[:2]
        mirrored = self._flip is not None and bool(torch.rand(1) < self._flip.p)
        enhancement, erased = self._sample_enhancement(), self._sample_erasing()
        paste = None
        if self._npo is not None:
            paste = self._npo.sample_params(self.size, np.random.default_rng(seed))
        return AugmentationParams(top, left, mirrored, enhancement, erased, paste)

    def _sample_enhancement(self) -> Enhancement | None:
        if self._jitter is None or self._jitter.p < torch.rand(1):
            return None
        (jitter,) = self._jitter.transforms
        order, *factors = jitter.get_params(
            jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
        )
        return Enhancement(
            tuple(kind for kind in order.tolist() if kind < 3),  # 3 is the hue
            tuple(1.0 if factor is None else factor for factor in factors[:3]),
        )

    def _sample_erasing(self) -> Rectangle | None:
        erasing = self._erasing
        if erasing is None or not torch.rand(1) < erasing.p:
            return None
        *rectangle, value = erasing.get_params(
            self._image, scale=erasing.scale, ratio=erasing.ratio, value=list(erasing.value)
        )
        return None if value is self._image else Rectangle(*rectangle)  # ten attempts have failed

    def crop(self, image: np.ndarray, params: AugmentationParams, out: np.ndarray) -> None:
        """Copy an image (3, H, W) into ``out``, cropped from the padded image and flipped.

        Args:
            image: (3, H, W) uint8.
            params: where to crop, and whether to flip.
            out: (3, H, W) zeros, contiguous.
        """
        (from_rows, to_rows), (from_columns, to_columns) = (
            _overlap(first - self._padding, side)
            for first, side in zip((params.top, params.left), self.size, strict=True)
        )
        target = np.zeros_like(out) if params.mirrored else out
        target[:, to_rows, to_columns] = image[:, from_rows, from_columns]
        if params.mirrored:
            width = out.shape[-1]
            cv2.flip(target.reshape(-1, width), 1, out.reshape(-1, width))

    def finish(
        self, images: torch.Tensor, params: Sequence[AugmentationParams]
    ) -> dict[str, torch.Tensor]:
        """Adjust colors, erase and paste.

        Args:
            images: (B, 3, H, W) uint8, cropped; they may be changed in place.
            params: one per image.

        Returns:
            ``images``; with NPO augmentation ``part_visibility`` (B, P) and, in pairs,
            ``occluded_images``. Images are float32 where erasing is on, whose value need not be a
            whole number, else uint8.
        """
        for image, each in zip(images, params, strict=True):
            if each.enhancement is not None:
                image.copy_(enhance(image, *each.enhancement))
        if self._erasing is not None:
            images = images.float()
            value = torch.tensor(self._erasing.value)[:, None, None]
            for image, each in zip(images, params, strict=True):
                if each.erased is not None:
                    each.erased.select(image).copy_(value)
        if self._npo is None:
            return {"images": images}
        occluded = images.clone() if self._npo.pair else images
        for image, each in zip(occluded, params, strict=True):
            if each.paste is not None:
                # by way of int: a copy from float32 to uint8 takes six times as long
                patch = self._npo.prepare_patch(each.paste).int()
                each.paste.rectangle.select(image).copy_(patch)
        batch = (
            {"images": images, "occluded_images": occluded}
            if self._npo.pair
            else {"images": images}
        )
        batch["part_visibility"] = self._npo.label([each.paste for each in params], self.size)
        return batch


def _overlap(shift: int, side: int) -> tuple[slice, slice]:
    """Return what to read of an axis and where to write it, for a window shifted by ``shift``."""
    first, end = max(0, shift), min(side, side + shift)
    return slice(first, end), slice(first - shift, end - shift)


def build_augmentation(cfg: CfgNode, npo: NpoAugmentation | None) -> Augmentation:
    """Build the augmentation that ``INPUT`` describes.

    Raises:
        UserError: something is on that only fast-reid's transforms can do.
    """
    keys = cfg.INPUT
    refused = [f"INPUT.{name}.ENABLED" for name in _UNSUPPORTED if keys[name].ENABLED]
    if keys.CJ.ENABLED and keys.CJ.HUE:
        refused.append("INPUT.CJ.HUE")
    if keys.PADDING.ENABLED and keys.PADDING.MODE != "constant":
        refused.append("INPUT.PADDING.MODE")
    if keys.REA.ENABLED and len(keys.REA.VALUE) != 3:
        refused.append("INPUT.REA.VALUE")
    if refused:
        raise UserError(
            f"INPUT.AUGMENTATION workers does not support {', '.join(refused)} as set; use "
            "INPUT.AUGMENTATION transforms"
        )
    return Augmentation(build_transforms(cfg, is_train=True).transforms, npo)
