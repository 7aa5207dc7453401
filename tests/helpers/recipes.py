"""What a configuration comes to: its keys, and what is built from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import Any

from fastreid.config import CfgNode
from fastreid.engine.hooks import LRScheduler
from fastreid.utils.events import EventStorage
from torch import nn

from occluded_reid.config import leaves
from occluded_reid.data.samplers import build_sampler
from occluded_reid.data.transforms.augmentation import build_train_transforms
from occluded_reid.engine.optimizer import build_lr_schedulers, build_optimizer

IMAGES = {"OccludedDuke": 15_618, "Market1501": 12_936, "DukeMTMC": 16_522}  # for training
SHOWN = ("size", "padding", "p", "value")  # of a transform
OPTIONS = ("momentum", "nesterov", "betas", "weight_decay")  # of an optimizer
ITERATIONS = 2  # in an epoch of the schedules below; their shape does not depend on it


def describe(cfg: CfgNode) -> dict[str, Any]:
    """Return every key, and as built: augmentation, batch, optimizer, rates by epoch."""
    optimizer = build_optimizer(cfg, nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    options = {
        name: {group[name] for group in optimizer.param_groups}
        for name in OPTIONS
        if name in optimizer.param_groups[0]
    }
    images = cfg.SOLVER.WARMUP_ITERS * cfg.SOLVER.IMS_PER_BATCH
    return {key: _tuple(value) for key, value in leaves(cfg)} | {
        "augmentation": [
            (type(each).__name__, *filter(None, (_tuple(vars(each).get(n)) for n in SHOWN)))
            for each in build_train_transforms(cfg).transforms
        ],
        "batch": _count_identities(cfg),
        "optimizer": type(optimizer).__name__,
        **{name: each.pop() if len(each) == 1 else each for name, each in options.items()},
        "warm-up": round(images / IMAGES[cfg.DATASETS.NAMES[0]]),  # epochs
        "rates": _list_rates(cfg),
    }  # fmt: skip


def find_differences(cfg: CfgNode, expected: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``cfg`` has in place of what is expected.

    ``rates`` are expected by epoch, from 0, at its end, within 1 %.
    """
    actual, rates = describe(cfg), expected["rates"]
    actual["rates"] = {epoch: actual["rates"].get(epoch, 0) for epoch in rates}
    if all(abs(actual["rates"][epoch] - rate) <= 0.01 * rate for epoch, rate in rates.items()):
        actual["rates"] = rates
    return {key: actual.get(key) for key, value in expected.items() if actual.get(key) != value}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _count_identities(cfg: CfgNode) -> tuple[int, ...]:
    """Return how many images of each identity are in a batch, of 40 with ten images each."""
    items = [(f"{n}.jpg", f"id_{n // 10}", f"cam_{n % 3}") for n in range(400)]
    batch = islice(build_sampler(cfg, items, 1), cfg.SOLVER.IMS_PER_BATCH)
    return tuple(sorted(Counter(items[position][1] for position in batch).values()))


class _Schedule:
    """The part of a trainer that the learning-rate hook reads."""

    grad_scaler = None

    def __init__(self, cfg: CfgNode):
        self.optimizer = build_optimizer(cfg, nn.Linear(1, 1, bias=False))
        schedulers = build_lr_schedulers(cfg, self.optimizer, ITERATIONS)
        self.hook = LRScheduler(self.optimizer, schedulers)
        self.hook.trainer = self
        self.warmup_iters, self.delay_epochs = cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.DELAY_EPOCHS
        self.iters_per_epoch, self.max_epoch = ITERATIONS, cfg.SOLVER.MAX_EPOCH

    def run(self) -> list[float]:
        """Return the rate at the end of each epoch, before the epoch's step of the schedule."""
        rates = []
        with EventStorage() as self.storage:
            for epoch in range(self.max_epoch):
                self.epoch = epoch
                for step in range(self.iters_per_epoch):
                    self.iter = epoch * self.iters_per_epoch + step
                    self.optimizer.step()
                    self.hook.after_step()
                rates.append(self.optimizer.param_groups[0]["lr"])
                self.hook.after_epoch()
        return rates


def _list_rates(cfg: CfgNode) -> dict[int, float]:
    """Return the learning rate of each epoch, as fast-reid's hook runs the schedule."""
    epoch = IMAGES[cfg.DATASETS.NAMES[0]] // cfg.SOLVER.IMS_PER_BATCH
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.WARMUP_ITERS = round(ITERATIONS * cfg.SOLVER.WARMUP_ITERS / epoch)
    return dict(enumerate(_Schedule(cfg).run()))
