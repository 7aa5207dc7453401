"""From training images to both views of a sample: on one core, and in an epoch on a GPU."""

from __future__ import annotations

import collections
import itertools
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cases.training import build_step, run_steps
from fastreid.config import CfgNode
from fastreid.data.transforms import build_transforms
from harness.comparison import (
    Figure,
    Figures,
    make_figure,
    measure_seconds,
    require_equal,
    time_alternately,
)
from PIL import Image
from references.pil_pairs import PairsInPIL
from torch import nn

from fed_plugin import add_fed_config
from occluded_reid.config import load_config
from occluded_reid.data.build import build_train_loader
from occluded_reid.data.cache import DecodedImages, open_cache
from occluded_reid.data.reid_dataset import BatchDataset, Item, SampleIndex, collate
from occluded_reid.data.transforms.augmentation import build_augmentation
from occluded_reid.data.transforms.npo import build_npo
from occluded_reid.modeling.build import build_model

OPTIONS = (
    "MODEL.DEVICE", "cpu", "INPUT.FLIP.ENABLED", "True", "INPUT.PADDING.ENABLED", "True",
    "INPUT.NPO.ENABLED", "True", "INPUT.NPO.MODE", "pair",
)  # fmt: skip
CONFIG = Path(__file__).parents[2] / "projects/FED/configs/occ_duke.yml"
DISTINCT = 256  # images; decoding them repeatedly costs as much as decoding 15,618
WARM_UP = 10  # steps


def measure_loading(
    images: int = 64, size: tuple[int, int] = (256, 128), rounds: int = 7
) -> dict[str, Figure]:
    """Compare samples per second with PIL, from a cache and from JPEG files of 128 x 64.

    All sides use the same seeds.
    """
    options = [*OPTIONS, "INPUT.SIZE_TRAIN", str(list(size))]
    cfg = load_config("", options, add_keys=[add_fed_config])
    npo = build_npo(cfg)
    assert npo is not None
    augmentation = build_augmentation(cfg, npo)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        items = write_images(Path(folder), images)
        reference = PairsInPIL(items, build_transforms(cfg, is_train=True), npo, Path(folder))
        decoded = DecodedImages([item[0] for item in items], augmentation.resize)
        cache = open_cache(decoded, size, folder)
        indices = [SampleIndex(number, 1000 + number) for number in range(images)]

        def others() -> dict[str, Any]:
            return collate([reference[index] for index in indices])

        for name, source in (("loading", cache), ("loading_files", decoded)):
            ours = BatchDataset(items, source, augmentation)
            check(ours.__getitems__(indices), others())
            times = time_alternately(partial(ours.__getitems__, indices), others, rounds=rounds)
            rate, reference_rate = ([images / spent for spent in each] for each in times)
            unit = f"pairs of {size[0]} x {size[1]} per s and core"
            figures[name] = make_figure((rate, reference_rate), unit, rate=True)
    return figures


def check(ours: dict[str, Any], reference: dict[str, Any]) -> None:
    """Raise MismatchError if a view or a label differs.

    The pasted patch may differ by a few gray levels: PIL clips after each color change, ours after
    the last. Another patch or position differs by more.
    """
    for name in ("images", "part_visibility"):
        require_equal(f"loading: {name}", ours[name].float(), reference[name], atol=0)
    off = (ours["occluded_images"].float() - reference["occluded_images"]).abs()
    worst = off.mean(dim=(1, 2, 3)).max()
    require_equal("loading: mean difference of an occluded view", worst, 0.0, atol=8)


def write_images(
    folder: Path, images: int, *, identities: int = 0, distinct: int = 0
) -> list[tuple[str, int, int]]:
    """Write smooth random JPEG images of 128 x 64; return path, identity and camera of each.

    ``identities`` 0 means four images each; ``distinct`` images repeat, 0 means that none does.
    """
    rng = np.random.default_rng(0)
    identities, distinct = identities or -(-images // 4), distinct or images
    paths = [folder / f"{number:05d}.jpg" for number in range(images)]
    for number, path in enumerate(paths):
        if number < distinct:
            pixels = rng.integers(0, 256, (16, 8, 3), np.uint8)
            image = Image.fromarray(pixels).resize((64, 128), Image.Resampling.BICUBIC)
            image.save(path, quality=90)
        else:
            path.write_bytes(paths[number % distinct].read_bytes())
    return [(str(path), i * identities // images, i % 3) for i, path in enumerate(paths)]


def measure_schedule(
    images: int = 15618,
    identities: int = 702,
    workers: int = os.cpu_count() or 1,
    options: tuple[str, ...] = (),
    device: str = "cuda",
) -> Figures:
    """Measure an epoch: ``INPUT.AUGMENTATION workers`` from a full cache of decoded images.

    ``gpu_schedule`` is compared with the steps alone, the other two with fast-reid's transforms.
    The model is that of occ_duke.yml, from random weights, in bf16 autocast.
    """
    with tempfile.TemporaryDirectory() as folder:
        items = write_images(Path(folder), images, identities=identities, distinct=DISTINCT)
        words = (
            "MODEL.DEVICE", device, "MODEL.BACKBONE.PRETRAIN", "False", "SOLVER.BASE_LR", "0.0001",
            "MODEL.HEADS.NUM_CLASSES", str(identities), "INPUT.CACHE", f"{folder}/cache",
            "DATALOADER.NUM_WORKERS", str(workers), "SEED", "0", *options,
        )  # fmt: skip
        cfg = build_cfg(*words)
        model = build_model(cfg)
        without = measure_steps(cfg, model, items)
        seconds, *ours = measure_epoch(cfg, model, items)
        times = [[120 * each / 60] for each in (seconds, without)]
        unit = f"minutes of 120 epochs, {workers} workers, against the steps alone"
        yield "gpu_schedule", make_figure(times, unit)
        plain = build_cfg(*words, "INPUT.AUGMENTATION", "transforms", "INPUT.CACHE", "")
        _, *reference = measure_epoch(plain, model, items)
        waits, rates = ([[mine], [other]] for mine, other in zip(ours, reference, strict=True))
        unit = f"pairs per s, {workers} workers"
        yield "gpu_loading", make_figure(rates, unit, rate=True)
        unit = f"of an epoch the host waits for a batch, {workers} workers"
        yield "gpu_waiting", make_figure(waits, unit)


def build_cfg(*words: str) -> CfgNode:
    """Return occ_duke.yml with drawn patches and some keys changed."""
    words = ("INPUT.NPO.OCCLUDERS", "[]", *words)
    return load_config(str(CONFIG), words, add_keys=[add_fed_config])


def measure_steps(cfg: CfgNode, model: nn.Module, items: list[Item]) -> float:
    """Return the seconds of an epoch's steps without its loader."""
    batch = next(iter(build_train_loader(cfg, items)))
    step = build_step(cfg, model, itertools.repeat(batch))
    run_steps(step, WARM_UP)
    steps = len(items) // cfg.SOLVER.IMS_PER_BATCH
    return measure_seconds(lambda: run_steps(step, steps), cfg.MODEL.DEVICE)


def measure_epoch(cfg: CfgNode, model: nn.Module, items: list[Item]) -> tuple[float, ...]:
    """Run a loader alone, then as many steps of the trainer with it.

    Returns:
        Seconds of an epoch, the share spent waiting for data, and pairs per s of the loader alone.
    """
    steps = len(items) // cfg.SOLVER.IMS_PER_BATCH
    batches = iter(build_train_loader(cfg, items))

    def skip_batches(number: int) -> None:
        collections.deque(itertools.islice(batches, number), maxlen=0)

    skip_batches(4 * cfg.DATALOADER.NUM_WORKERS)  # twice what the workers prefetch
    alone = measure_seconds(lambda: skip_batches(steps), cfg.MODEL.DEVICE)
    step = build_step(cfg, model, batches)
    run_steps(step, WARM_UP)
    waits: list[float] = []
    spent = measure_seconds(
        lambda: waits.extend(run_steps(step, steps)["data_time"]), cfg.MODEL.DEVICE
    )
    return spent, sum(waits) / spent, steps * cfg.SOLVER.IMS_PER_BATCH / alone
