"""The second step of the augmentation for a whole batch at once, on a GPU.

Images come as uint8 with the numbers of what is to be done to them, a few bytes each; the occlusion
set lies on the device. Nothing waits for the device, and no shape depends on chance.

Shapes: B images of (3, H, W), O patches of the occlusion set, padded to S x S.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from occluded_reid.data.transforms.augmentation import Augmentation, Changes, Enhancement
from occluded_reid.data.transforms.color import change_colours_of_batch, enhance
from occluded_reid.data.transforms.npo import NOTHING, Pasting, Rectangle
from occluded_reid.data.transforms.occluder_patches import Patch
from occluded_reid.data.transforms.resize import resize_onto, resize_weights


class BatchChanges(NamedTuple):
    """The ``Changes`` of a batch; rectangles as four numbers.

    Attributes:
        order: (B, 3) int64 of the changes of colours.
        enhancement: (B, 3) float64, their factors; 1 where nothing changes.
        erased: (B, 4) int64; no pixels where nothing is erased.
        patch: (B,) int64.
        rectangle: (B, 4) int64 that is pasted over; no pixels where nothing is.
        window: (B, 4) int64.
        mirrored: (B,) bool, of the patch.
        factors: (B, 3) float64, of the patch.
    """

    order: torch.Tensor
    enhancement: torch.Tensor
    erased: torch.Tensor
    patch: torch.Tensor
    rectangle: torch.Tensor
    window: torch.Tensor
    mirrored: torch.Tensor
    factors: torch.Tensor


def stacked(changes: Sequence[Changes]) -> BatchChanges:
    """Return the numbers of what is done after the crop."""
    enhanced = [each.enhanced or Enhancement() for each in changes]
    pasted = [each.pasted or _NO_PASTING for each in changes]
    columns = (
        [each.order for each in enhanced],
        [each.factors for each in enhanced],
        [each.erased for each in changes],
        [each.patch for each in pasted],
        [each.rectangle for each in pasted],
        [each.window for each in pasted],
        [each.mirrored for each in pasted],
        [each.factors for each in pasted],
    )
    return BatchChanges(*(torch.from_numpy(np.array(column)) for column in columns))


_NO_PASTING = Pasting(0, False, NOTHING, Rectangle(0, 0, 1, 1), False, (1.0, 1.0, 1.0))


class BatchAugmentation:
    """Changes colours, erases and pastes as :meth:`Augmentation.finish` does, bit for bit.

    Args:
        augmentation: what is done.
        device: where.
    """

    def __init__(self, augmentation: Augmentation, device: torch.device):
        self._enhances = augmentation.jitter is not None
        self._npo = augmentation.npo
        self._erased = None
        if augmentation.erasing is not None:
            value = torch.tensor(augmentation.erasing.value, device=device)
            self._erased = value[:, None, None]
        if self._npo is not None:
            self._patches = padded(self._npo.patches).to(device)

    def __call__(self, images: torch.Tensor, changes: BatchChanges) -> dict[str, torch.Tensor]:
        """Return ``images`` (B, 3, H, W) float32 and, in pairs, ``occluded_images``.

        Args:
            images: (B, 3, H, W) uint8, cropped; they stay as they are.
            changes: what to do, on the device of the images.
        """
        if self._enhances:
            images = enhance(images, changes.order, changes.enhancement)
        images = images.float()
        if self._erased is not None:
            images = torch.where(_inside(changes.erased, images), self._erased, images)
        if self._npo is None:
            return {"images": images}
        pasted = torch.where(
            _inside(changes.rectangle, images), self._prepared(changes, images), images
        )
        return (
            {"images": images, "occluded_images": pasted} if self._npo.pair else {"images": pasted}
        )

    def _prepared(self, changes: BatchChanges, images: torch.Tensor) -> torch.Tensor:
        """Return the patches (B, 3, H, W) float32 where they belong; outside is anything."""
        rows, columns = images.shape[-2:]
        side = self._patches.shape[-1]
        window, target = changes.window, changes.rectangle
        down = resize_weights(window[:, 0::2], target[:, 0::2], rows, side)
        across = resize_weights(window[:, 1::2], target[:, 1::2], columns, side, changes.mirrored)
        patches = self._patches.index_select(0, changes.patch).double()
        area = target[:, 2] * target[:, 3]
        patches = resize_onto(patches, down, across)
        return change_colours_of_batch(patches, changes.factors, area)


def padded(patches: Sequence[Patch]) -> torch.Tensor:
    """Return the patches in the upper left corners of (O, 3, S, S) uint8."""
    side = max(max(patch.pixels.shape[:2]) for patch in patches)
    found = torch.zeros(len(patches), 3, side, side, dtype=torch.uint8)
    for place, patch in zip(found, patches, strict=True):
        height, width = patch.pixels.shape[:2]
        place[:, :height, :width] = torch.from_numpy(patch.pixels).permute(2, 0, 1)
    return found


def _inside(rectangles: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return which pixels (B, 1, H, W) lie inside of rectangles (B, 4)."""
    top, left, height, width = rectangles[:, :, None].unbind(1)
    rows = torch.arange(images.shape[-2], device=images.device)
    columns = torch.arange(images.shape[-1], device=images.device)
    in_rows = (rows >= top) & (rows < top + height)
    in_columns = (columns >= left) & (columns < left + width)
    return in_rows[:, None, :, None] & in_columns[:, None, None, :]
