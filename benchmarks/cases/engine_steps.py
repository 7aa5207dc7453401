"""Training steps as the trainer runs them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastreid.config import CfgNode
from fastreid.utils.events import EventStorage
from torch import nn

from occluded_reid.engine.optimizer import build_optimizer
from occluded_reid.engine.train_step import TrainingStep, wrap_model


def build_step(cfg: CfgNode, model: nn.Module, batches: Iterable[dict[str, Any]]) -> TrainingStep:
    """Return the trainer's step over ``batches``, in one endless epoch."""
    optimizer = build_optimizer(cfg, model)
    return TrainingStep(cfg, wrap_model(cfg, model), batches, optimizer, iters_per_epoch=10**9)


def run_steps(step: TrainingStep, number: int) -> dict[str, list[float]]:
    """Run iterations; return the loss terms and ``data_time`` (waiting for a batch) of each."""
    with EventStorage(step.iter) as storage:
        for _ in range(number):
            storage.iter = step.iter
            step.run_step()
            step.iter += 1
        step.read_losses()
        histories = storage.histories()
    return {name: [value for value, _ in each.values()] for name, each in histories.items()}
