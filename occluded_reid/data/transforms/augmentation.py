"""Augmentation of a batch of uint8 images of one size, in place of fast-reid's image by image.

Chance is taken as fast-reid's transforms and NPO augmentation take it, in their order and by their
own functions: a seed gives the images that it gives there, bit for bit. What it has decided is done
in two steps. An image is cropped and mirrored while it is copied into its batch, which costs little
more than the copy. Colours, erasing and pasting follow, here image by image for a CPU, in
:mod:`occluded_reid.data.transforms.batch_augmentation` for the whole batch on a GPU.

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
from occluded_reid.data.transforms.npo import NOTHING, NpoAugmentation, Pasting, Rectangle
from occluded_reid.utils.errors import UserError


class Enhancement(NamedTuple):
    """A change of brightness, contrast and saturation (0, 1, 2): their order and factors."""

    order: tuple[int, ...] = (0, 1, 2)
    factors: tuple[float, ...] = (1.0, 1.0, 1.0)


class Changes(NamedTuple):
    """What chance decides about one image.

    Attributes:
        top: first row of the crop in the padded image.
        left: likewise its first column.
        mirrored: from left to right, after the crop.
        enhanced: change of its colours, or None.
        erased: what is erased.
        pasted: what is pasted over it, or None.
    """

    top: int
    left: int
    mirrored: bool
    enhanced: Enhancement | None
    erased: Rectangle
    pasted: Pasting | None


class Augmentation:
    """What ``INPUT`` describes.

    Args:
        transforms: fast-reid's, in its order; those of :func:`build_augmentation`.
        npo: adds occluded views; None for none.

    Attributes:
        size: (H, W).
        resize: fast-reid's transform that comes first, from a PIL image to a PIL image.
        jitter: the transform that changes colours, or None.
        erasing: the transform that erases, or None.
        npo: as above.
    """

    def __init__(self, transforms: Sequence[Any], npo: NpoAugmentation | None):
        by_kind = {type(transform): transform for transform in transforms}
        self.resize = by_kind[T.Resize]
        self.size: tuple[int, int] = tuple(self.resize.size)
        self.erasing = by_kind.get(T.RandomErasing)
        self.npo = npo
        self._flip = by_kind.get(T.RandomHorizontalFlip)
        self.jitter = by_kind.get(T.RandomApply)
        self._padding = by_kind[T.Pad].padding if T.Pad in by_kind else 0
        # torchvision asks an image for its size before it draws
        sides = (side + 2 * self._padding for side in self.size)
        self._padded = torch.empty(3, *sides, device="meta")
        self._image = torch.empty(3, *self.size, device="meta")

    def draw(self, seed: int) -> Changes:
        """Let chance decide about one image.

        Args:
            seed: of this image. PyTorch's global generator is seeded with it and used.
        """
        torch.default_generator.manual_seed(seed)
        top, left = T.RandomCrop.get_params(self._padded, self.size)[:2]
        mirrored = self._flip is not None and bool(torch.rand(1) < self._flip.p)
        enhanced, erased = self._draw_enhancement(), self._draw_erasing()
        pasted = None
        if self.npo is not None:
            pasted = self.npo.draw(self.size, np.random.default_rng(seed))
        return Changes(top, left, mirrored, enhanced, erased, pasted)

    def _draw_enhancement(self) -> Enhancement | None:
        if self.jitter is None or self.jitter.p < torch.rand(1):
            return None
        (jitter,) = self.jitter.transforms
        order, *factors = jitter.get_params(
            jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
        )
        return Enhancement(
            tuple(kind for kind in order.tolist() if kind < 3),
            tuple(1.0 if factor is None else factor for factor in factors[:3]),
        )

    def _draw_erasing(self) -> Rectangle:
        erasing = self.erasing
        if erasing is None or not torch.rand(1) < erasing.p:
            return NOTHING
        *place, value = erasing.get_params(
            self._image, scale=erasing.scale, ratio=erasing.ratio, value=list(erasing.value)
        )
        return NOTHING if value is self._image else Rectangle(*place)  # ten tries have failed

    def crop(self, image: np.ndarray, changes: Changes, out: np.ndarray) -> None:
        """Copy an image (3, H, W) into ``out``, cropped from the padded image and mirrored.

        Args:
            image: the image.
            changes: where, and whether.
            out: (3, H, W), zeros in one piece.
        """
        (from_rows, to_rows), (from_columns, to_columns) = (
            _overlap(first - self._padding, side)
            for first, side in zip((changes.top, changes.left), self.size, strict=True)
        )
        target = np.zeros_like(out) if changes.mirrored else out
        target[:, to_rows, to_columns] = image[:, from_rows, from_columns]
        if changes.mirrored:
            width = out.shape[-1]
            cv2.flip(target.reshape(-1, width), 1, out.reshape(-1, width))

    def finish(self, images: torch.Tensor, changes: Sequence[Changes]) -> dict[str, torch.Tensor]:
        """Change colours, erase and paste, image by image.

        Args:
            images: (B, 3, H, W) uint8, cropped; they may be changed.
            changes: of each of them.

        Returns:
            ``images``; with NPO augmentation ``part_visibility`` (B, P) and, in pairs,
            ``occluded_images``. Images are float32 where something is erased, whose value need not
            be a whole number, else uint8.
        """
        for image, each in zip(images, changes, strict=True):
            if each.enhanced is not None:
                order, factors = (torch.tensor(pair)[None] for pair in each.enhanced)
                image.copy_(enhance(image[None], order, factors.double())[0])
        if self.erasing is not None:
            images = images.float()
            value = torch.tensor(self.erasing.value)[:, None, None]
            for image, each in zip(images, changes, strict=True):
                inside(image, each.erased).copy_(value)
        batch = {"images": images}
        if self.npo is not None:
            view = "occluded_images" if self.npo.pair else "images"
            batch[view] = images.clone() if self.npo.pair else images
            for image, each in zip(batch[view], changes, strict=True):
                if each.pasted is not None:
                    # by way of int: from float32 to uint8 a copy takes six times as long
                    patch = self.npo.prepare(each.pasted).int()
                    inside(image, each.pasted.rectangle).copy_(patch)
        return batch | self.labels(changes)

    def labels(self, changes: Sequence[Changes]) -> dict[str, torch.Tensor]:
        """Return ``part_visibility`` (B, P) where there is NPO augmentation, else nothing."""
        if self.npo is None:
            return {}
        pasted = [each.pasted for each in changes]
        return {"part_visibility": self.npo.visibility(pasted, self.size)}


def inside(image: torch.Tensor, rectangle: Rectangle) -> torch.Tensor:
    """Return the view of (3, H, W) that lies inside of a rectangle."""
    top, left, height, width = rectangle
    return image[:, top : top + height, left : left + width]


def _overlap(shift: int, side: int) -> tuple[slice, slice]:
    """Return what is read of an axis and where it is written, for a window that is shifted."""
    first, end = max(0, shift), min(side, side + shift)
    return slice(first, end), slice(first - shift, end - shift)


def build_augmentation(cfg: CfgNode, npo: NpoAugmentation | None) -> Augmentation:
    """Build what ``INPUT`` describes.

    Raises:
        UserError: something is switched on that only fast-reid's transforms can do.
    """
    keys = cfg.INPUT
    refused = [f"INPUT.{name}.ENABLED" for name in _NOT_HERE if keys[name].ENABLED]
    if keys.CJ.ENABLED and keys.CJ.HUE:
        refused.append("INPUT.CJ.HUE")
    if keys.PADDING.ENABLED and keys.PADDING.MODE != "constant":
        refused.append("INPUT.PADDING.MODE")
    if keys.REA.ENABLED and len(keys.REA.VALUE) != 3:
        refused.append("INPUT.REA.VALUE")
    if refused:
        raise UserError(
            f"INPUT.AUGMENTATION {keys.AUGMENTATION} cannot do what {', '.join(refused)} "
            f"{'says' if len(refused) == 1 else 'say'}; take INPUT.AUGMENTATION transforms"
        )
    return Augmentation(build_transforms(cfg, is_train=True).transforms, npo)


_NOT_HERE = ("AFFINE", "AUGMIX", "AUTOAUG", "CROP", "RPT")
