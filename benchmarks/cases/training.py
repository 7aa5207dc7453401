"""Training steps, as their parts and as the trainer runs them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from fastreid.config import CfgNode
from fastreid.utils.events import EventStorage
from torch import nn

from cases.models import Batch
from occluded_reid.engine.optimizer import build_optimizer
from occluded_reid.engine.train_step import TrainingStep, wrap_model

# FED's optimizer (Sec. 4.2)
SGD = (
    "MODEL.DEVICE", "cpu", "SOLVER.OPT", "SGD", "SOLVER.BASE_LR", "0.008",
    "SOLVER.WEIGHT_DECAY", "0.0001", "SOLVER.WEIGHT_DECAY_BIAS", "0.0001",
)  # fmt: skip


def our_step(model: Any, batch: Batch, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Run forward and backward pass and memory update; return the loss terms.

    ``dtype`` is that of autocast; None for float32.
    """
    with torch.autocast(batch["images"].device.type, dtype, enabled=dtype is not None):
        terms = model(batch)
    sum(terms.values()).backward()
    return terms


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
