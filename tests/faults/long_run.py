#!/usr/bin/env python
"""Train for thousands of iterations, evaluate and save: memory and open files must not grow."""

from __future__ import annotations

import argparse
import gc
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

_TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_TESTS / "helpers"), str(_TESTS), str(_TESTS.parent)]

from fed.tiny import fed_run_cfg  # noqa: E402
from runs import draw_market  # noqa: E402

from occluded_reid.engine.defaults import prepare_run  # noqa: E402
from occluded_reid.engine.hooks import HookBase  # noqa: E402
from occluded_reid.engine.trainer import Trainer  # noqa: E402

ITERATIONS_PER_EPOCH = 6  # 48 images in batches of 8
WARMUP = 0.25  # of the run, while allocators and caches fill up


class Reading(NamedTuple):
    """The process after an iteration: MiB of memory, open files, tracked objects."""

    iteration: int
    memory: float
    files: int
    objects: int


class MemoryMeter(HookBase):
    """Takes a :class:`Reading` every ``period`` iterations."""

    def __init__(self, period: int):
        self._period = period
        self.readings: list[Reading] = []

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self._period:
            return
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        memory = pages * resource.getpagesize() / 2**20
        files = len(os.listdir("/proc/self/fd"))
        self.readings.append(Reading(self.trainer.iter + 1, memory, files, len(gc.get_objects())))
        print(*self.readings[-1], flush=True)


def long_run(folder: Path, iterations: int, workers: int = 0) -> list[Reading]:
    """Train FED on generated images, evaluate and save every five epochs; return the readings."""
    os.environ["FASTREID_DATASETS"] = str(draw_market(folder / "data"))
    every = ("TEST.EVAL_PERIOD", 5, "SOLVER.CHECKPOINT_PERIOD", 5)
    slowly = ("SOLVER.BASE_LR", 1e-4, "DATALOADER.NUM_WORKERS", workers)
    epochs = -(-iterations // ITERATIONS_PER_EPOCH)
    cfg = fed_run_cfg(folder / "run", *every, *slowly, "SOLVER.MAX_EPOCH", epochs)
    trainer = Trainer(prepare_run(cfg, training=True))
    meter = MemoryMeter(max(1, iterations // 40))
    trainer.register_hooks([meter])
    trainer.train()
    return meter.readings


def measure_growth(readings: list[Reading]) -> tuple[float, int, int]:
    """Return the growth after the first quarter: MiB, open files, objects."""
    first, last = readings[int(len(readings) * WARMUP)], readings[-1]
    return last.memory - first.memory, last.files - first.files, last.objects - first.objects


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        readings = long_run(Path(folder), args.iterations, args.workers)
    memory, files, objects = measure_growth(readings)
    print(
        f"{args.iterations} iterations: {memory:+.1f} MiB, {files:+d} files, {objects:+d} objects"
    )


if __name__ == "__main__":
    main()
