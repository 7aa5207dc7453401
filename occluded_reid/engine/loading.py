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

from occluded_reid.datasets import build_dataset, dataset_root
from occluded_reid.engine.randomness import PrivateRandomness, derive_seed
from occluded_reid.errors import UserError
from occluded_reid.images import READ_ERRORS, read_rgb
from occluded_reid.occlusion import NpoAugmentation, build_npo

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
        return {
            "images": self.transform(image),
            "targets": self.pid_dict[pid] if self.relabel else pid,
            "camids": self.cam_dict[camid] if self.relabel else camid,
            "img_paths": path,
            "index": index,
        }


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


class DeviceLoader:
    """A loader whose batches arrive on ``device``; unreadable images stop it or are left out."""

    def __init__(self, loader: DataLoader[Any], device: torch.device, on_error: str):
        self.loader = loader
        self.dataset: Any = loader.dataset
        self.batch_sampler = loader.batch_sampler
        self._device = device
        self._on_error = on_error
        self._named: set[str] = set()

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.loader:
            self._handle_unreadable(batch.pop("unreadable"))
            if not batch:
                continue
            yield {
                key: value.to(self._device, non_blocking=True) if torch.is_tensor(value) else value
                for key, value in batch.items()
            }

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


def collate(samples: Sequence[dict[str, Any] | Unreadable]) -> dict[str, Any]:
    """Batch samples by name; ``unreadable`` lists those without an image.

    Tensors, arrays and numbers are stacked, strings stay a list.

    Raises:
        TypeError: a value of another kind.
    """
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
        options: of :func:`~occluded_reid.datasets.build_dataset`, in place of those of ``cfg``.
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
        UserError: the data cannot fill a batch, or the occlusion set (INPUT.NPO) cannot be used.
    """
    if items is None:
        items = [item for name in cfg.DATASETS.NAMES for item in open_dataset(cfg, name).train]
    transforms = build_transforms(cfg, is_train=True)
    dataset = ReidDataset(items, transforms, relabel=True, npo=build_npo(cfg))
    _check_batch_can_be_filled(cfg, dataset)
    batches = EpochBatches(
        lambda seed: make_sampler(cfg, items, seed),
        cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(),
        len(dataset) // cfg.SOLVER.IMS_PER_BATCH,
        cfg.SEED,
    )
    return _loader(cfg, dataset, batches)


def build_test_loader(
    cfg: CfgNode, query: list[Item], gallery: list[Item]
) -> tuple[DeviceLoader, int]:
    """Return this rank's share of ``query`` and ``gallery`` in that order, and len(query)."""
    transforms = build_transforms(cfg, is_train=False)
    dataset = ReidDataset(query + gallery, transforms, relabel=False)
    per_rank = max(1, cfg.TEST.IMS_PER_BATCH // comm.get_world_size())
    batches = BatchSampler(samplers.InferenceSampler(len(dataset)), per_rank, drop_last=False)
    return _loader(cfg, dataset, batches), len(query)


def _loader(cfg: CfgNode, dataset: ReidDataset, batches: Sampler[Any]) -> DeviceLoader:
    device = torch.device(cfg.MODEL.DEVICE)
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else opening the loader would draw from the model's stream
    )
    return DeviceLoader(loader, device, cfg.INPUT.ON_ERROR)


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


def _check_batch_can_be_filled(cfg: CfgNode, dataset: ReidDataset) -> None:
    """Refuse what makes fast-reid's samplers spin for ever or an epoch empty."""
    batch, ranks = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    if batch % ranks:
        raise UserError(f"SOLVER.IMS_PER_BATCH {batch} cannot be shared by {ranks} processes")
    if len(dataset) < batch:
        raise UserError(
            f"the training set has {len(dataset)} images, SOLVER.IMS_PER_BATCH asks for {batch}"
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
    if dataset.num_classes < needed:
        raise UserError(
            f"a batch needs {needed} identities (SOLVER.IMS_PER_BATCH {batch} / "
            f"DATALOADER.NUM_INSTANCE {instances}), the training set has {dataset.num_classes}"
        )
