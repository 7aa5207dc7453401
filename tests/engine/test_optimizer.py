"""The learning rate of each iteration."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from fastreid.utils.events import EventStorage

from occluded_reid.config import load_config
from occluded_reid.engine.hooks import IterationScheduler
from occluded_reid.engine.optimizer import build_lr_schedulers
from occluded_reid.utils.errors import UserError

ITERS = 10  # of an epoch


def list_rates(*overrides: object) -> list[float]:
    """Return the rates of all iterations that SOLVER.SCHED_BY ITERATION gives."""
    words = ["SOLVER.SCHED_BY", "ITERATION", "SOLVER.BASE_LR", "1.0", *map(str, overrides)]
    solver = (cfg := load_config("", words)).SOLVER
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=solver.BASE_LR)
    hook = IterationScheduler(optimizer, build_lr_schedulers(cfg, optimizer, ITERS))
    hook.trainer = SimpleNamespace(
        warmup_iters=solver.WARMUP_ITERS, delay_epochs=solver.DELAY_EPOCHS, iters_per_epoch=ITERS,
        grad_scaler=None,
    )  # fmt: skip
    rates = []
    with EventStorage() as hook.trainer.storage:
        for hook.trainer.iter in range(solver.MAX_EPOCH * ITERS):
            hook.trainer.epoch = hook.trainer.iter // ITERS
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            hook.after_step()
            if (hook.trainer.iter + 1) % ITERS == 0:
                hook.after_epoch()
    return rates


@pytest.mark.parametrize(("warmup", "delay", "start"), [(0, 0, 0), (5, 0, 5), (5, 2, 20)])
def test_cosine_by_iteration(warmup, delay, start):
    rates = list_rates(
        "SOLVER.SCHED", "CosineAnnealingLR", "SOLVER.MAX_EPOCH", 6, "SOLVER.ETA_MIN_LR", 0.1,
        "SOLVER.WARMUP_ITERS", warmup, "SOLVER.DELAY_EPOCHS", delay,
    )  # fmt: skip
    steps = 6 * ITERS - start
    curve = [0.1 + 0.9 * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]
    assert rates[start:] == pytest.approx(curve)
    assert rates[:warmup] == sorted(rates[:warmup]) and rates[warmup:start] == [1.0] * (
        start - warmup
    )


def test_steps_by_iteration_count_epochs_after_the_warm_up():
    rates = list_rates(
        "SOLVER.SCHED", "MultiStepLR", "SOLVER.MAX_EPOCH", 4, "SOLVER.STEPS", "[1, 3]",
        "SOLVER.WARMUP_ITERS", 5, "SOLVER.GAMMA", 0.5,
    )  # fmt: skip
    assert rates[5:] == [1.0] * 10 + [0.5] * 20 + [0.25] * 5


def test_warm_up_that_fills_the_run_is_refused():
    with pytest.raises(UserError, match="starts after 20 iterations .*shorten the warm-up"):
        list_rates(
            "SOLVER.SCHED", "CosineAnnealingLR", "SOLVER.MAX_EPOCH", 2, "SOLVER.WARMUP_ITERS", 20
        )
