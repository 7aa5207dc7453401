"""Whole training steps: losses, gradients, the optimizer; images per second, share of the peak."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comparison import Figure, Work, figure, seconds, time_alternately
from fastreid.config import CfgNode
from torch.utils.flop_counter import FlopCounterMode

from occluded_reid.config import load_config

SGD = (
    "MODEL.DEVICE", "cpu", "SOLVER.OPT", "SGD", "SOLVER.BASE_LR", "0.008",
    "SOLVER.WEIGHT_DECAY", "0.0001", "SOLVER.WEIGHT_DECAY_BIAS", "0.0001",
)  # fmt: skip


def sgd_cfg() -> CfgNode:
    """Return a configuration with FED's optimizer (Sec. 4.2)."""
    return load_config("", SGD)


def whole_step(step: Callable[[], Any], optimizer: torch.optim.Optimizer) -> Work:
    """Return a function that does ``step``, moves the parameters and drops the gradients."""

    def work() -> None:
        step()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return work


def compare_training(
    name: str, ours: Work, reference: Work, *, images: int, device: str, rounds: int, peak_side: int
) -> tuple[dict[str, Figure], list[list[float]]]:
    """Compare two whole steps; return the figures ``gpu_<name>_*`` and the seconds of each round.

    Args:
        name: of the method.
        ours: a step of :func:`whole_step`.
        reference: likewise, over the same images.
        images: that go through the backbone in a step.
        device: where.
        rounds: how many.
        peak_side: of the matrices whose product gives the peak.
    """
    times = list(time_alternately(ours, reference, rounds=rounds, device=device))
    with FlopCounterMode(display=False) as counter:
        ours()
    peak = peak_rate(device, peak_side)
    shares = [[counter.get_total_flops() / spent / peak for spent in each] for each in times]
    rates = [[images / spent for spent in each] for each in times]
    found = {
        f"gpu_{name}_images": figure(rates, f"images per s, {images} in a step", rate=True),
        f"gpu_{name}_share": figure(
            shares, f"of {peak / 1e12:.3g} TFLOP/s, what a bf16 matrix product reaches", rate=True
        ),
    }
    if device != "cpu":
        memory = [[peak_memory(work) / 1e9] for work in (ours, reference)]
        found[f"gpu_{name}_memory"] = figure(memory, f"GB beside the weights, {images} images")
    return found, times


def peak_rate(device: str, side: int) -> float:
    """Return the FLOP/s of a bf16 matrix product, the best of ten."""
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / min(seconds(lambda: one @ other, device) for _ in range(10))


def peak_memory(work: Work) -> int:
    """Return the most bytes of GPU memory that ``work`` takes beside what is held before it."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before
