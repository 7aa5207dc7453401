"""From lists of image paths to batches on the device.

A batch is a dict of names: ``images`` (B, 3, H, W) float32 in 0-255, ``targets`` (B,), ``camids``
(B,), ``img_paths`` (a list), ``index`` (B,), the position in the data set. In training with
``INPUT.NPO`` also ``part_visibility`` (B, P) and, in pairs, ``occluded_images`` (B, 3, H, W).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.data import samplers
from fastreid.data.common import CommDataset
from fastreid.data.transforms import build_transforms
from fastreid.utils import comm
from torch.utils.data import BatchSampler, DataLoader, Sampler

from occluded_reid.data.cache import DecodedImages, Images, cached
from occluded_reid.data.datasets.registry import build_dataset, dataset_root
from occluded_reid.data.images import READ_ERRORS, read_rgb
from occluded_reid.data.transforms.augmentation import Augmentation, build_augmentation
from occluded_reid.data.transforms.batch_augmentation import (
    BatchAugmentation,
    BatchChanges,
    stacked,
)
from occluded_reid.data.transforms.npo import NpoAugmentation, build_npo
from occluded_reid.data.workers import read_batches, worker_options
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.random import PrivateRandomness, derive_seed

logger = logging.getLogger(__name__)

Item = tuple[str, Any, Any]


class Draw(NamedTuple):
    """What a sampler asks for: an image, and the seed of its augmentation."""

    image: int
    seed: int


class Unreadable(NamedTuple):
    """What a data set returns in place of an image that cannot be decoded."""

    path: str
    reason: str


class ReidDataset(CommDataset):
    """fast-reid's data set; augmentation is seeded by the draw, unreadable images are named.

    Args:
        items: (path, identity, camera) of each image.
        transform: from a PIL image to a (3, H, W) tensor.
        relabel: number identities and cameras from 0.
        npo: occludes what the transform returns, wherever a draw brings a seed.
    """

    def __init__(
        self,
        items: list[Item],
        transform: Callable[[Any], torch.Tensor],
        relabel: bool = True,
        npo: NpoAugmentation | None = None,
    ):
        super().__init__(items, transform, relabel)
        self._npo = npo

    def __getitem__(self, draw: Draw | int) -> dict[str, Any] | Unreadable:
        if not isinstance(draw, Draw):
            return self.read(draw)
        with PrivateRandomness(draw.seed):
            sample = self.read(draw.image)
        if self._npo is None or isinstance(sample, Unreadable):
            return sample
        return self._npo(sample, draw.seed)

    def read(self, index: int) -> dict[str, Any] | Unreadable:
        """Return the sample at ``index``, a dict of names (see the module's first lines)."""
        path, pid, camid = self.img_items[index][:3]
        try:
            image = read_rgb(path)
        except READ_ERRORS as error:
            return Unreadable(path, f"{type(error).__name__}: {error}")
        return {"images": self.transform(image), **self.about(index)}

    def about(self, index: int) -> dict[str, Any]:
        """Return what the sample at ``index`` holds beside its image."""
        path, pid, camid = self.img_items[index][:3]
        return {
            "targets": self.pid_dict[pid] if self.relabel else pid,
            "camids": self.cam_dict[camid] if self.relabel else camid,
            "img_paths": path,
            "index": index,
        }


class BatchDataset(ReidDataset):
    """Reads and augments a batch at once; it holds what one sample by one would, images as uint8.

    Args:
        items: (path, identity, camera) of each image.
        images: of one size, in the order of the items.
        augmentation: what is done to them.
        finished: whether a batch is complete. Else it is cropped only, and holds as ``changes``
            what ``BatchAugmentation`` is to do.
    """

    def __init__(
        self, items: list[Item], images: Images, augmentation: Augmentation, *, finished: bool
    ):
        super().__init__(items, augmentation.resize)
        self._images = images
        self._augmentation = augmentation
        self._finished = finished

    def __getitems__(self, draws: Sequence[Draw]) -> dict[str, Any]:
        """Return a batch as :func:`collate` does; PyTorch's loader asks for it."""
        found = [(draw, self._images[draw.image]) for draw in draws]
        unreadable = [
            Unreadable(self.img_items[draw.image][0], image)
            for draw, image in found
            if isinstance(image, str)
        ]
        readable = [(draw, image) for draw, image in found if not isinstance(image, str)]
        if not readable:
            return {"unreadable": unreadable}
        batch = collate([self.about(draw.image) for draw, _ in readable])
        return batch | self._augmented(readable) | {"unreadable": unreadable}

    def _augmented(self, found: Sequence[tuple[Draw, np.ndarray]]) -> dict[str, Any]:
        changes = []
        crops = np.zeros((len(found), 3, *self._augmentation.size), np.uint8)
        with PrivateRandomness(found[0][0].seed):
            for (draw, image), crop in zip(found, crops, strict=True):
                changes.append(self._augmentation.draw(draw.seed))
                self._augmentation.crop(image, changes[-1], crop)
        images = torch.from_numpy(crops)
        if self._finished:
            return self._augmentation.finish(images, changes)
        labels = self._augmentation.labels(changes)
        return {"images": images, "changes": stacked(changes), **labels}


class EpochBatches(Sampler[list[Draw]]):
    """An endless stream of batches in which epoch ``e`` depends on ``(seed, e)`` alone.

    Args:
        make_sampler: builds one of fast-reid's samplers from a seed equal on all ranks.
        batch_size: images per batch of this rank.
        batches_per_epoch: after so many batches the next epoch begins.
        seed: the run's seed.
    """

    def __init__(
        self,
        make_sampler: Callable[[int], Sampler[int]],
        batch_size: int,
        batches_per_epoch: int,
        seed: int,
    ):
        self._make_sampler = make_sampler
        self._batch_size = batch_size
        self._batches_per_epoch = batches_per_epoch
        self._seed = seed
        self._rank = comm.get_rank()
        self.start_epoch, self.start_batch = 0, 0

    def __iter__(self) -> Iterator[list[Draw]]:
        for epoch in itertools.count(self.start_epoch):
            shared_seed = derive_seed(self._seed, epoch)
            indices = iter(self._make_sampler(shared_seed))
            stream = PrivateRandomness(shared_seed)  # fast-reid's samplers seed and use globals
            for batch in range(self._batches_per_epoch):
                with stream:
                    chosen = list(itertools.islice(indices, self._batch_size))
                if (epoch, batch) < (self.start_epoch, self.start_batch):
                    continue
                yield [
                    Draw(int(index), derive_seed(self._seed, epoch, self._rank, batch, position))
                    for position, index in enumerate(chosen)
                ]


EMPTY_BATCHES = 10
"""So many in a row without a readable image are no accident."""


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
        return _one_ahead(batches, self._device) if self._device.type == "cuda" else batches

    def _on_device(self) -> Iterator[dict[str, Any]]:
        empty = 0
        for batch in read_batches(self.loader):
            unreadable = batch.pop("unreadable")
            self._handle_unreadable(unreadable)
            empty = 0 if batch else empty + 1
            if empty == EMPTY_BATCHES:
                path, reason = unreadable[-1]
                raise UserError(
                    f"no image of {EMPTY_BATCHES} batches could be read, the last one being {path} "
                    f"({reason}); is its folder still there?"
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


def _one_ahead(batches: Iterator[dict[str, Any]], device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield what ``batches`` yields; the GPU makes the next one while it works on this one."""
    beside = torch.cuda.Stream(device)

    def fetch() -> dict[str, Any] | None:
        with torch.cuda.stream(beside):
            return next(batches, None)

    coming = fetch()
    while coming is not None:
        working = torch.cuda.current_stream(device)
        working.wait_stream(beside)
        for value in coming.values():
            if torch.is_tensor(value):
                value.record_stream(working)  # its memory is not used again before that is done
        batch, coming = coming, fetch()
        yield batch


def collate(samples: Sequence[dict[str, Any] | Unreadable] | dict[str, Any]) -> dict[str, Any]:
    """Batch samples by name; ``unreadable`` lists those without an image.

    Tensors, arrays and numbers are stacked, strings stay a list. A batch stays as it is.

    Raises:
        TypeError: a value of another kind.
    """
    if isinstance(samples, dict):
        return samples
    readable = [sample for sample in samples if isinstance(sample, dict)]
    batch: dict[str, Any] = {
        key: _stack(key, [sample[key] for sample in readable]) for key in (readable or [{}])[0]
    }
    batch["unreadable"] = [sample for sample in samples if isinstance(sample, Unreadable)]
    return batch


def _stack(key: str, values: list[Any]) -> Any:
    first = values[0]
    if torch.is_tensor(first):
        return torch.stack(values)
    if isinstance(first, str):
        return values
    if isinstance(first, (bool, int, float, np.ndarray, np.generic)):
        stacked = torch.as_tensor(np.stack(values))
        return stacked.float() if stacked.is_floating_point() else stacked
    raise TypeError(f"a sample's {key!r} is a {type(first).__name__}, which cannot be batched")


def open_dataset(cfg: CfgNode, name: str, **options: Any) -> Any:
    """Open the data set ``Name`` or ``Name:protocol`` as ``DATASETS.*`` says.

    Args:
        cfg: the configuration.
        name: of the data set.
        options: of :func:`~occluded_reid.data.datasets.registry.build_dataset`, in place of those
            of ``cfg``.
    """
    configured = {
        "root": dataset_root(),
        "protocol": cfg.DATASETS.PROTOCOL,
        "allow_partial": cfg.DATASETS.ALLOW_PARTIAL,
        "synthetic_size": cfg.DATASETS.SYNTHETIC.SIZE,
        "synthetic_seed": cfg.DATASETS.SYNTHETIC.SEED,
        "synthetic_root": cfg.DATASETS.SYNTHETIC.ROOT,
        "occluders": cfg.DATASETS.OCCLUDED.OCCLUDERS,
        "occluded_seed": cfg.DATASETS.OCCLUDED.SEED,
        "occluded_root": cfg.DATASETS.OCCLUDED.ROOT,
        "combineall": cfg.DATASETS.COMBINEALL,
    }
    return build_dataset(name, **(configured | options))


def build_train_loader(cfg: CfgNode, items: list[Item] | None = None) -> DeviceLoader:
    """Return the endless loader of ``DATASETS.NAMES``, or of ``items`` (path, identity, camera).

    Raises:
        UserError: the data cannot fill a batch, the occlusion set (INPUT.NPO) cannot be used, or
            the augmentation or the cache of decoded images cannot be had.
    """
    if items is None:
        items = [item for name in cfg.DATASETS.NAMES for item in open_dataset(cfg, name).train]
    _check_batch_can_be_filled(cfg, items)
    dataset, augment = _train_dataset(cfg, items)
    batches = EpochBatches(
        lambda seed: make_sampler(cfg, items, seed),
        cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(),
        len(dataset) // cfg.SOLVER.IMS_PER_BATCH,
        cfg.SEED,
    )
    return _loader(cfg, dataset, batches, augment)


def _train_dataset(cfg: CfgNode, items: list[Item]) -> tuple[ReidDataset, BatchAugmentation | None]:
    """Return the training set and, where it does not do all of it, what completes its batches."""
    npo, device = build_npo(cfg), torch.device(cfg.MODEL.DEVICE)
    where, folder = cfg.INPUT.AUGMENTATION, cfg.INPUT.CACHE
    if where == "transforms":
        if folder:
            raise UserError(
                f"INPUT.CACHE {folder} needs INPUT.AUGMENTATION workers or device: fast-reid's "
                "transforms begin with the decoded file"
            )
        return ReidDataset(items, build_transforms(cfg, is_train=True), npo=npo), None
    augmentation = build_augmentation(cfg, npo)
    decoded = DecodedImages([item[0] for item in items], augmentation.resize)
    images: Images = decoded
    if folder:
        threads = max(1, cfg.DATALOADER.NUM_WORKERS)
        images = cached(decoded, augmentation.size, folder, threads=threads)
    finished = where == "workers" or device.type == "cpu"
    augment = None if finished else BatchAugmentation(augmentation, device)
    return BatchDataset(items, images, augmentation, finished=finished), augment


def build_test_loader(
    cfg: CfgNode, query: list[Item], gallery: list[Item]
) -> tuple[DeviceLoader, int]:
    """Return this rank's share of ``query`` and ``gallery`` in that order, and len(query)."""
    transforms = build_transforms(cfg, is_train=False)
    dataset = ReidDataset(query + gallery, transforms, relabel=False)
    per_rank = max(1, cfg.TEST.IMS_PER_BATCH // comm.get_world_size())
    batches = BatchSampler(samplers.InferenceSampler(len(dataset)), per_rank, drop_last=False)
    return _loader(cfg, dataset, batches), len(query)


def _loader(
    cfg: CfgNode,
    dataset: ReidDataset,
    batches: Sampler[Any],
    augment: BatchAugmentation | None = None,
) -> DeviceLoader:
    device = torch.device(cfg.MODEL.DEVICE)
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else opening the loader would draw from the model's stream
        **worker_options(cfg.DATALOADER.NUM_WORKERS),
    )
    return DeviceLoader(loader, device, cfg.INPUT.ON_ERROR, augment)


def make_sampler(cfg: CfgNode, items: list[Item], seed: int) -> Sampler[int]:
    """Build fast-reid's sampler ``DATALOADER.SAMPLER_TRAIN`` with a seed.

    Raises:
        UserError: there is no sampler of that name.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    per_rank = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
    instances = cfg.DATALOADER.NUM_INSTANCE
    if name == "TrainingSampler":
        return samplers.TrainingSampler(len(items), seed=seed)
    if name == "ImbalancedDatasetSampler":
        return samplers.ImbalancedDatasetSampler(items, seed=seed)
    if name == "SetReWeightSampler":
        weights = cfg.DATALOADER.SET_WEIGHT
        return samplers.SetReWeightSampler(items, per_rank, instances, weights, seed=seed)
    if name in _IDENTITY_SAMPLERS:
        return getattr(samplers, name)(items, per_rank, instances, seed=seed)
    raise UserError(
        f"DATALOADER.SAMPLER_TRAIN is {name}; fast-reid has {', '.join(samplers.__all__)}"
    )


_IDENTITY_SAMPLERS = ("BalancedIdentitySampler", "NaiveIdentitySampler")


def _check_batch_can_be_filled(cfg: CfgNode, items: list[Item]) -> None:
    """Refuse what makes fast-reid's samplers spin for ever or an epoch empty."""
    batch, ranks = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if batch % ranks:
        raise UserError(f"SOLVER.IMS_PER_BATCH {batch} cannot be shared by {ranks} processes")
    if len(items) < batch:
        raise UserError(
            f"the training set has {len(items)} images, SOLVER.IMS_PER_BATCH asks for {batch}"
        )
    if cfg.DATALOADER.SAMPLER_TRAIN not in _IDENTITY_SAMPLERS:
        return
    instances = cfg.DATALOADER.NUM_INSTANCE
    if instances < 1 or (batch // ranks) % instances:
        raise UserError(
            f"a batch of {batch // ranks} images per process (SOLVER.IMS_PER_BATCH {batch}, "
            f"{ranks} processes) is no multiple of DATALOADER.NUM_INSTANCE {instances}"
        )
    needed = batch // instances
    identities = len({item[1] for item in items})
    if identities < needed:
        raise UserError(
            f"a batch needs {needed} identities (SOLVER.IMS_PER_BATCH {batch} / "
            f"DATALOADER.NUM_INSTANCE {instances}), the training set has {identities}: lower "
            "SOLVER.IMS_PER_BATCH"
        )
