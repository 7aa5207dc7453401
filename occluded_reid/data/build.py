"""Data sets and loaders from the configuration."""

from __future__ import annotations

from typing import Any

from fastreid.config import CfgNode
from fastreid.data import samplers
from fastreid.data.transforms import build_transforms
from fastreid.utils import comm
from torch.utils.data import BatchSampler

from occluded_reid.data.cache import DecodedImages, Images, open_cache
from occluded_reid.data.datasets.registry import build_dataset, get_dataset_root
from occluded_reid.data.digest import name_items
from occluded_reid.data.loader import ReidLoader
from occluded_reid.data.reid_dataset import BatchDataset, Item, ReidDataset
from occluded_reid.data.samplers import EpochBatches, build_sampler, check_batch_size
from occluded_reid.data.transforms.augmentation import build_augmentation, build_train_transforms
from occluded_reid.data.transforms.npo import build_npo
from occluded_reid.utils.distributed import check_agreement
from occluded_reid.utils.errors import UserError


def open_dataset(cfg: CfgNode, name: str, **options: Any) -> Any:
    """Open the data set ``Name`` or ``Name:protocol`` with the options of ``DATASETS``.

    ``options`` are arguments of :func:`~occluded_reid.data.datasets.registry.build_dataset` that
    override ``cfg``.

    >>> open_dataset(cfg, "OccludedREID").query[0]  # doctest: +SKIP
    LabeledImage(path='.../occluded_body_images/001/001_01.tif', pid=1, camid=0)
    """
    keys, synthetic, occluded = cfg.DATASETS, cfg.DATASETS.SYNTHETIC, cfg.DATASETS.OCCLUDED
    configured = {
        "root": get_dataset_root(), "protocol": keys.PROTOCOL,
        "allow_partial": keys.ALLOW_PARTIAL, "combineall": keys.COMBINEALL,
        "synthetic_size": synthetic.SIZE, "synthetic_seed": synthetic.SEED,
        "synthetic_root": synthetic.ROOT, "occluders": occluded.OCCLUDERS,
        "occluded_seed": occluded.SEED, "occluded_root": occluded.ROOT,
    }  # fmt: skip
    return build_dataset(name, **(configured | options))


def build_train_loader(cfg: CfgNode, items: list[Item] | None = None) -> ReidLoader:
    """Build the endless loader of ``DATASETS.NAMES``, or of ``items`` (path, identity, camera).

    >>> loader = build_train_loader(cfg)  # doctest: +SKIP
    >>> next(iter(loader))["images"].shape  # doctest: +SKIP
    torch.Size([64, 3, 256, 128])
    """
    if items is None:
        items = [item for name in cfg.DATASETS.NAMES for item in open_dataset(cfg, name).train]
        _check_cameras(cfg.MODEL.BACKBONE.CAMERA_EMBEDDING, items)
    check_agreement({"the training list": name_items(items)})
    check_batch_size(cfg, items)
    batches = EpochBatches(
        lambda seed: build_sampler(cfg, items, seed),
        cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(),
        len(items) // cfg.SOLVER.IMS_PER_BATCH,
        cfg.SEED,
    )
    return ReidLoader(cfg, _build_train_dataset(cfg, items), batches)


def _check_cameras(number: int, items: list[Item]) -> None:
    """Refuse a camera embedding unless ``items`` are of cameras 0 to ``number`` - 1, all of them.

    Only then is a camera's position among those of training, by which the embedding knows it, its
    number in a test set.
    """
    names = sorted({str(item[2]) for item in items})
    numbers = [name.rpartition("_")[2].lstrip("0") or "0" for name in names]
    if number and numbers != [str(each) for each in range(number)]:
        raise UserError(
            f"MODEL.BACKBONE.CAMERA_EMBEDDING is {number}, but the training images are of "
            f"{len(names)} cameras ({', '.join(names[:20])}); it must be their number, and they "
            "must be counted from 0 without a gap"
        )


def _build_train_dataset(cfg: CfgNode, items: list[Item]) -> ReidDataset:
    npo, folder = build_npo(cfg), cfg.INPUT.CACHE
    if cfg.INPUT.AUGMENTATION == "transforms":
        if folder:
            raise UserError(
                f"INPUT.CACHE {folder} needs INPUT.AUGMENTATION workers: fast-reid's transforms "
                "start from the decoded file"
            )
        return ReidDataset(items, build_train_transforms(cfg), npo=npo)
    augmentation = build_augmentation(cfg, npo)
    decoded = DecodedImages([item[0] for item in items], augmentation.resize)
    images: Images = decoded
    if folder:
        threads = max(1, cfg.DATALOADER.NUM_WORKERS)
        images = open_cache(decoded, augmentation.size, folder, threads=threads)
    return BatchDataset(items, images, augmentation)


def build_test_loader(
    cfg: CfgNode, query: list[Item], gallery: list[Item]
) -> tuple[ReidLoader, int]:
    """Build the loader of this rank's share of ``query + gallery``; return it and len(query)."""
    transforms = build_transforms(cfg, is_train=False)
    dataset = ReidDataset(query + gallery, transforms, relabel=False)
    per_rank = max(1, cfg.TEST.IMS_PER_BATCH // comm.get_world_size())
    batches = BatchSampler(samplers.InferenceSampler(len(dataset)), per_rank, drop_last=False)
    return ReidLoader(cfg, dataset, batches), len(query)
