"""The real trainer with its loader on a CPU, against the same network in a plain PyTorch loop."""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from fastreid.engine.train_loop import HookBase
from harness.comparison import Figure, make_figure, require_equal
from torch import nn

from figures.imports import ROOT, run_interpreter
from figures.loading import DISTINCT, write_images
from occluded_reid.config import load_config
from occluded_reid.engine.defaults import prepare_run
from occluded_reid.engine.trainer import Trainer
from occluded_reid.utils.memory import keep_freed_memory

LITE0 = ("configs/synthetic_baseline.yml", 64, (128, 64))
R50 = ("configs/market1501_baseline.yml", 8, (256, 128))
MAIN = "from figures.cpu_training import main; main()"
WORKERS = 1


class Finished(Exception):
    """All rounds are measured; the trainer need not go on."""


def measure_training(
    lite0: tuple[int, int] = (6, 4), r50: tuple[int, int] = (2, 3)
) -> dict[str, Figure]:
    """Compare the images per processor second of both nets; each pair is (steps, rounds).

    ``*_workers`` counts the processor time of the loader's workers as well.
    """
    figures = {}
    for name, net, (config, images, size), (steps, rounds) in (
        ("train_cpu", "EfficientNet-Lite0", LITE0, lite0),
        ("train_cpu_r50", "ResNet-50", R50, r50),
    ):
        words = (config, str(images), *map(str, size), str(steps), str(rounds))
        printed = run_interpreter(("-c", MAIN, *words))
        alone, plain, workers = json.loads(printed.splitlines()[-1])
        both = [one + other for one, other in zip(alone, workers, strict=True)]
        unit = f"images per processor s, {net}, {images} of {size[0]} x {size[1]} in a step"
        for suffix, seconds, text in (("", alone, ""), ("_workers", both, " and its workers")):
            rates = [[images * steps / spent for spent in each] for each in (seconds, plain)]
            against = f"trainer{text}, against a plain loop"
            figures[f"{name}{suffix}"] = make_figure(rates, f"{unit}, {against}", rate=True)
    return figures


def main() -> None:
    """Print the seconds of each round: of the trainer, of the plain loop, of the workers."""
    config, *numbers = sys.argv[1:]
    images, height, width, steps, rounds = map(int, numbers)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        write_market(Path(folder), images * steps * (rounds + 2))
        os.environ["FASTREID_DATASETS"] = folder
        words = (
            "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.PRETRAIN", False, "SOLVER.MAX_EPOCH", 99,
            "SOLVER.AMP.ENABLED", False,
            "SOLVER.IMS_PER_BATCH", images, "INPUT.SIZE_TRAIN", [height, width],
            "INPUT.SIZE_TEST", [height, width], "DATALOADER.NUM_WORKERS", WORKERS, "SEED", 0,
            "DATASETS.NAMES", ("Market1501",), "DATASETS.TESTS", ("Market1501",),
            "DATASETS.ALLOW_PARTIAL", True, "OUTPUT_DIR", f"{folder}/run",
        )  # fmt: skip
        cfg = load_config(str(ROOT / config), [str(word) for word in words])
        trainer = Trainer(prepare_run(cfg, training=True))
        hook = PlainLoop(trainer, steps, rounds)
        trainer.register_hooks([hook])
        try:
            trainer.train()
        except Finished:
            print(json.dumps(hook.seconds))


def write_market(root: Path, images: int) -> None:
    """Write ``images`` to train on as Market-1501, and two people to test on."""
    for split, number, first in (
        ("bounding_box_train", images, 1), ("query", 2, 9001), ("bounding_box_test", 8, 9001)
    ):  # fmt: skip
        folder = root / "Market-1501-v15.09.15" / split
        folder.mkdir(parents=True)
        for index, (path, person, _) in enumerate(write_images(folder, number, distinct=DISTINCT)):
            camera = 1 + index % 2 if split != "query" else 3
            name = f"{first + person:04d}_c{camera}s1_{index:06d}_01.jpg"
            Path(path).rename(folder / name)


class PlainLoop(HookBase):
    """After every ``steps`` of the trainer, train a copy of its network on the same batches.

    ``seconds`` holds the processor time of each round: of the trainer, of the loop, of the workers.
    The first round warms up.
    """

    def __init__(self, trainer: Trainer, steps: int, rounds: int):
        self._network: nn.Module = copy.deepcopy(trainer.model)
        self._optimizer = torch.optim.Adam(self._network.parameters(), lr=1e-4)
        self._steps, self._rounds = steps, rounds
        self._batches: list[dict[str, Any]] = []
        self._start = (0.0, 0.0)
        self.seconds: list[list[float]] = [[], [], []]

    def before_train(self) -> None:
        """Begin to record batches."""
        model = self.trainer.model
        model.register_forward_pre_hook(lambda _, args: self._batches.append(args[0]))

    def after_step(self) -> None:
        """Measure where a round ends."""
        if (self.trainer.iter + 1) % self._steps:
            return
        spent = [now - then for now, then in zip(read_clocks(), self._start, strict=True)]
        before = time.process_time()
        loss = self._train()
        plain = time.process_time() - before
        if self.trainer.iter < self._steps:  # both began with the same weights
            (first, _), *_ = self.trainer.storage.history("total_loss").values()
            require_equal("first loss", first, loss, atol=1e-4, rtol=1e-4)
        else:
            for values, value in zip(self.seconds, (spent[0], plain, spent[1]), strict=True):
                values.append(value)
        if len(self.seconds[0]) == self._rounds:
            raise Finished
        self._batches.clear()
        self._start = read_clocks()

    def _train(self) -> float:
        """Train on the batches of the round; return the first loss."""
        losses = []
        for batch in self._batches:
            loss = sum(self._network(batch).values())
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            losses.append(loss.item())
        return losses[0]


def read_clocks() -> tuple[float, float]:
    """Return the processor seconds of this process and of its workers so far."""
    times = [worker.cpu_times() for worker in psutil.Process().children()]
    return time.process_time(), sum(each.user + each.system for each in times)
