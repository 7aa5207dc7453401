"""Augmentation of a batch of B uint8 images (3, H, W), in place of fast-reid's image by image.

Fast-reid's transforms and NPO augmentation draw the random numbers themselves, in their order, so
that a seed gives the same pixels there and here. Crop and flip happen while an image is copied into
its batch, which costs little more than the copy. Color, erasing and pasting follow.
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


class RandomValueErasing(T.RandomErasing):
    """Random erasing whose pixels get values of their own, uniform in 0-255 (Zhong et al., RE-R).

    torchvision's ``value="random"`` draws from a normal distribution, for normalized images.
    """

    @staticmethod
    def get_params(*args: Any, **kwargs: Any) -> tuple[int, int, int, int, torch.Tensor]:
        """Return top, left, height, width and the values (3, height, width) of a rectangle."""
        top, left, rows, columns, value = T.RandomErasing.get_params(*args, **kwargs)
        if value.shape[1:] == (1, 1):  # else the image itself: ten attempts have failed
            value = torch.randint(256, (3, rows, columns)).float()
        return top, left, rows, columns, value


class AugmentationParams(NamedTuple):
    """Random choices for one image; ``top`` and ``left`` locate the crop in the padded image."""

    top: int
    left: int
    mirrored: bool
    enhancement: tuple[Sequence[int], Sequence[float]] | None  # arguments of enhance
    erased: tuple[Rectangle, torch.Tensor] | None  # and its value
    paste: PasteParams | None


class Augmentation:
    """The augmentation that ``INPUT`` describes, made of fast-reid's ``transforms``.

    ``size`` is (H, W); ``resize``, their first, maps a PIL image to a PIL image of this size.
    """

    def __init__(self, transforms: Sequence[Any], npo: NpoAugmentation | None):
        by_type = {type(transform): transform for transform in transforms}
        self.resize = by_type[T.Resize]
        self.size: tuple[int, int] = tuple(self.resize.size)
        self._npo = npo
        self._erasing = by_type.get(T.RandomErasing, by_type.get(RandomValueErasing))
        self._flip = by_type.get(T.RandomHorizontalFlip)
        self._jitter = by_type.get(T.RandomApply)
        self._padding = by_type[T.Pad].padding if T.Pad in by_type else 0
        # torchvision's get_params read nothing but the size of an image
        padded_sides = (side + 2 * self._padding for side in self.size)
        self._padded = torch.empty(3, *padded_sides, device="meta")
        self._image = torch.empty(3, *self.size, device="meta")

    def sample_params(self, seed: int) -> AugmentationParams:
        """Choose how to augment one image; PyTorch's global generator is seeded with ``seed``."""
        torch.default_generator.manual_seed(seed)
        top, left = T.RandomCrop.get_params(self._padded, self.size)[:2]
        mirrored = self._flip is not None and bool(torch.rand(1) < self._flip.p)
        enhancement, erased = self._sample_enhancement(), self._sample_erasing()
        rng = np.random.default_rng(seed)
        paste = self._npo.sample_params(self.size, rng) if self._npo is not None else None
        return AugmentationParams(top, left, mirrored, enhancement, erased, paste)

    def _sample_enhancement(self) -> tuple[list[int], list[float]] | None:
        if self._jitter is None or self._jitter.p < torch.rand(1):
            return None
        (jitter,) = self._jitter.transforms
        order, *factors = jitter.get_params(
            jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
        )
        order = [kind for kind in order.tolist() if kind < 3]  # 3 is the hue
        return order, [1.0 if factor is None else factor for factor in factors[:3]]

    def _sample_erasing(self) -> tuple[Rectangle, torch.Tensor] | None:
        erasing = self._erasing
        if erasing is None or not torch.rand(1) < erasing.p:
            return None
        *rectangle, value = erasing.get_params(
            self._image, scale=erasing.scale, ratio=erasing.ratio, value=list(erasing.value)
        )
        # ten attempts have failed, or
        return None if value is self._image else (Rectangle(*rectangle), value)

    def crop(self, image: np.ndarray, params: AugmentationParams, out: np.ndarray) -> None:
        """Copy a uint8 image into ``out``, cropped from the padded image and flipped.

        Both are (3, H, W); ``out`` is contiguous and holds zeros.
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
        """Adjust colors of (B, 3, H, W) uint8 crops, possibly in place; erase and paste.

        Returns ``images``; with NPO augmentation ``part_visibility`` (B, P) of P stripes and, in
        pairs, ``occluded_images``. Images are float32 where erasing is on, whose value need not be
        a whole number, else uint8.
        """
        for image, each in zip(images, params, strict=True):
            if each.enhancement is not None:
                image.copy_(enhance(image, *each.enhancement))
        if self._erasing is not None:
            images = images.float()
            for image, each in zip(images, params, strict=True):
                if each.erased is not None:
                    rectangle, value = each.erased
                    rectangle.select(image).copy_(value)
        if self._npo is None:
            return {"images": images}
        occluded = images.clone() if self._npo.pair else images
        for image, each in zip(occluded, params, strict=True):
            if each.paste is not None:
                # by way of int: a copy from float32 to uint8 takes six times as long
                patch = self._npo.prepare_patch(each.paste).int()
                each.paste.rectangle.select(image).copy_(patch)
        visibility = self._npo.label([each.paste for each in params], self.size)
        views = {"occluded_images": occluded} if self._npo.pair else {}
        return {"images": images, **views, "part_visibility": visibility}


def _overlap(shift: int, side: int) -> tuple[slice, slice]:
    """Return what to read of an axis and where to write it, for a window shifted by ``shift``."""
    first, end = max(0, shift), min(side, side + shift)
    return slice(first, end), slice(first - shift, end - shift)


def build_train_transforms(cfg: CfgNode) -> T.Compose:
    """Build fast-reid's transforms for training, with ``INPUT.REA.RANDOM`` and ``CROP.PROB``."""
    crop = cfg.INPUT.CROP
    if crop.ENABLED and crop.PROB < 1 and list(crop.SIZE) != list(cfg.INPUT.SIZE_TRAIN):
        raise UserError(
            f"INPUT.CROP.SIZE is {list(crop.SIZE)}; with a PROB below 1, it must be "
            f"INPUT.SIZE_TRAIN, {list(cfg.INPUT.SIZE_TRAIN)}"
        )
    composed = build_transforms(cfg, is_train=True)
    for index, each in enumerate(composed.transforms):
        if crop.PROB < 1 and isinstance(each, T.RandomResizedCrop):
            composed.transforms[index] = T.RandomApply([each], crop.PROB)
        if cfg.INPUT.REA.RANDOM and isinstance(each, T.RandomErasing):
            composed.transforms[index] = RandomValueErasing(each.p, value=each.value)
    return composed


def build_augmentation(cfg: CfgNode, npo: NpoAugmentation | None) -> Augmentation:
    """Build the augmentation that ``INPUT`` describes; refuse what only fast-reid's can do."""
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
    return Augmentation(build_train_transforms(cfg).transforms, npo)
