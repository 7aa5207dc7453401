"""The data loader: batches on the device, and the policy for images that cannot be read."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from fastreid.config import CfgNode
from torch.utils.data import Sampler

from occluded_reid.compat import DeviceLoader
from occluded_reid.data.reid_dataset import ReidDataset, Unreadable, collate
from occluded_reid.data.workers import build_worker_options, read_batches
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.terminal import show

logger = logging.getLogger(__name__)

MAX_EMPTY_BATCHES = 10
"""So many batches in a row without a readable image are no accident."""


class ReidLoader(DeviceLoader):
    """A loader with batches on ``MODEL.DEVICE``; ``INPUT.ON_ERROR`` handles unreadable images.

    On a GPU the next batch is copied while the model works on the current one. ``batches`` yields
    the indices of each batch of ``dataset``.
    """

    def __init__(self, cfg: CfgNode, dataset: ReidDataset, batches: Sampler[Any]):
        super().__init__(
            dataset=dataset,
            batch_sampler=batches,
            collate_fn=collate,
            generator=torch.Generator(),  # opening the loader must not draw from the model's stream
            **build_worker_options(cfg.DATALOADER.NUM_WORKERS),
        )
        self.use_device(cfg.MODEL.DEVICE)
        self._on_error = cfg.INPUT.ON_ERROR
        self._logged: set[str] = set()

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        batches = self._read()
        return prefetch(batches, self.device) if self.device.type == "cuda" else batches

    def _read(self) -> Iterator[dict[str, Any]]:
        empty = 0
        for batch in read_batches(self):
            unreadable = batch.pop("unreadable")
            self._handle_unreadable(unreadable)
            empty = 0 if batch else empty + 1
            if empty == MAX_EMPTY_BATCHES:
                path, reason = unreadable[-1]
                raise UserError(
                    f"no image of {MAX_EMPTY_BATCHES} batches could be read, the last one being "
                    f"{show(path)} ({reason}); is its folder still there?"
                )
            if batch:
                batch = self.move_batch(batch)
                for name, value in batch.items():  # workers send bytes where they can
                    if torch.is_tensor(value) and value.dtype == torch.uint8:
                        batch[name] = value.float()
                yield batch

    def _handle_unreadable(self, unreadable: list[Unreadable]) -> None:
        for path, reason in unreadable:
            if self._on_error == "raise":
                raise UserError(
                    f"cannot read the image {show(path)} ({reason}); replace or remove it, "
                    "or skip such images: INPUT.ON_ERROR skip"
                )
            if path not in self._logged:
                self._logged.add(path)
                logger.warning(f"Skipped an image that cannot be read: {show(path)} ({reason})")


def prefetch(batches: Iterator[dict[str, Any]], device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield from ``batches``; the GPU receives the next one while it works on the current one."""
    copy_stream = torch.cuda.Stream(device)

    def fetch() -> dict[str, Any] | None:
        with torch.cuda.stream(copy_stream):
            return next(batches, None)

    upcoming = fetch()
    while upcoming is not None:
        stream = torch.cuda.current_stream(device)
        stream.wait_stream(copy_stream)
        for value in upcoming.values():
            if torch.is_tensor(value):
                value.record_stream(stream)  # keeps its memory until that stream is done with it
        batch, upcoming = upcoming, fetch()
        yield batch
