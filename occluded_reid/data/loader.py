"""The data loader: batches on the device, and what happens to images that cannot be read."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from occluded_reid.data.reid_dataset import Unreadable
from occluded_reid.data.transforms.batch_augmentation import BatchAugmentation, BatchChanges
from occluded_reid.data.workers import read_batches
from occluded_reid.utils.errors import UserError

logger = logging.getLogger(__name__)

MAX_EMPTY_BATCHES = 10
"""So many batches in a row without a readable image are no accident."""


class DeviceLoader:
    """A loader whose batches arrive on ``device``; unreadable images stop it or are left out.

    On a GPU the next batch is copied, and augmented, beside the work on the one before.

    Args:
        loader: of batches with ``unreadable``.
        device: of the batches.
        on_error: raise or skip.
        augment: completes a batch that holds ``changes``.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        device: torch.device,
        on_error: str,
        augment: BatchAugmentation | None = None,
    ):
        self.loader = loader
        self.dataset: Any = loader.dataset
        self.batch_sampler = loader.batch_sampler
        self._device = device
        self._on_error = on_error
        self._augment = augment
        self._named: set[str] = set()

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches = self._on_device()
        return prefetch(batches, self._device) if self._device.type == "cuda" else batches

    def _on_device(self) -> Iterator[dict[str, Any]]:
        empty = 0
        for batch in read_batches(self.loader):
            unreadable = batch.pop("unreadable")
            self._handle_unreadable(unreadable)
            empty = 0 if batch else empty + 1
            if empty == MAX_EMPTY_BATCHES:
                path, reason = unreadable[-1]
                raise UserError(
                    f"no image of {MAX_EMPTY_BATCHES} batches could be read, the last one being "
                    f"{path} ({reason}); is its folder still there?"
                )
            if not batch:
                continue
            batch = {name: _moved(value, self._device) for name, value in batch.items()}
            if self._augment is not None:
                batch |= self._augment(batch["images"], batch.pop("changes"))
            yield {name: _in_float(value) for name, value in batch.items()}

    def _handle_unreadable(self, unreadable: list[Unreadable]) -> None:
        for path, reason in unreadable:
            if self._on_error == "raise":
                raise UserError(
                    f"cannot read the image {path} ({reason}); replace or remove it, "
                    "or go on without such images: INPUT.ON_ERROR skip"
                )
            if path not in self._named:
                self._named.add(path)
                logger.warning(f"Left out, cannot be read: {path} ({reason})")


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, BatchChanges):
        return BatchChanges(*(_moved(each, device) for each in value))
    return value.to(device, non_blocking=True) if torch.is_tensor(value) else value


def _in_float(value: Any) -> Any:
    """Images come as bytes where they can, and are made float32 here."""
    return value.float() if torch.is_tensor(value) and value.dtype == torch.uint8 else value


def prefetch(batches: Iterator[dict[str, Any]], device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield what ``batches`` yields; the GPU makes the next one while it works on this one."""
    copy_stream = torch.cuda.Stream(device)

    def fetch() -> dict[str, Any] | None:
        with torch.cuda.stream(copy_stream):
            return next(batches, None)

    coming = fetch()
    while coming is not None:
        working = torch.cuda.current_stream(device)
        working.wait_stream(copy_stream)
        for value in coming.values():
            if torch.is_tensor(value):
                value.record_stream(working)  # its memory is not used again before that is done
        batch, coming = coming, fetch()
        yield batch
