"""FED's 120 epochs with the real loader over as many images as Occluded-Duke has."""

from __future__ import annotations

import collections
import itertools
import os
import tempfile
from pathlib import Path

from cases.training import build_step, run_steps
from fastreid.config import CfgNode
from harness.comparison import Figures, make_figure, measure_seconds
from torch import nn

from fed_plugin import add_fed_config
from figures.loading import write_images
from occluded_reid.config import load_config
from occluded_reid.data.build import build_train_loader
from occluded_reid.data.reid_dataset import Item
from occluded_reid.modeling.build import build_model

CONFIG = Path(__file__).parents[2] / "projects/FED/configs/occ_duke.yml"
DISTINCT = 256  # images; decoding them repeatedly costs as much as decoding 15,618
WARM_UP = 10  # steps


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
    """Return occ_duke.yml with some keys changed."""
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
