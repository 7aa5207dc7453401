"""Data sets and loaders from the configuration."""

from __future__ import annotations

from typing import Any

import torch
from fastreid.config import CfgNode
from fastreid.data import samplers
from fastreid.data.transforms import build_transforms
from fastreid.utils import comm
from torch.utils.data import BatchSampler, DataLoader, Sampler

from occluded_reid.data.cache import DecodedImages, Images, cached
from occluded_reid.data.datasets.registry import build_dataset, dataset_root
from occluded_reid.data.loader import DeviceLoader
from occluded_reid.data.reid_dataset import BatchDataset, Item, ReidDataset, collate
from occluded_reid.data.samplers import EpochBatches, build_sampler, check_batch_size
from occluded_reid.data.transforms.augmentation import build_augmentation
from occluded_reid.data.transforms.batch_augmentation import BatchAugmentation
from occluded_reid.data.transforms.npo import build_npo
from occluded_reid.data.workers import worker_options
from occluded_reid.utils.errors import UserError


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
    check_batch_size(cfg, items)
    dataset, augment = _train_dataset(cfg, items)
    batches = EpochBatches(
        lambda seed: build_sampler(cfg, items, seed),
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
