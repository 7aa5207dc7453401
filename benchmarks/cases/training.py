"""Whole training steps: images per second, share of the peak, memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from fastreid.config import CfgNode
from harness.comparison import Figure, Work, make_figure, measure_seconds, time_alternately
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from occluded_reid.config import load_config

SGD = (
    "MODEL.DEVICE", "cpu", "SOLVER.OPT", "SGD", "SOLVER.BASE_LR", "0.008",
    "SOLVER.WEIGHT_DECAY", "0.0001", "SOLVER.WEIGHT_DECAY_BIAS", "0.0001",
)  # fmt: skip
EPOCH = 15618 // 64  # Occluded-Duke
SCHEDULE = 120 * EPOCH


Batch = dict[str, torch.Tensor]


def our_step(model: Any, batch: Batch, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Run forward and backward pass and memory update; return the loss terms.

    ``dtype`` is that of autocast; None for float32.
    """
    with torch.autocast(batch["images"].device.type, dtype, enabled=dtype is not None):
        terms = model(batch)
    sum(terms.values()).backward()
    return terms


def clear_gradients(*models: Any) -> None:
    """Drop all gradients."""
    for model in models:
        model.zero_grad(set_to_none=True)


def sgd_cfg() -> CfgNode:
    """Return the configuration of FED's optimizer (Sec. 4.2)."""
    return load_config("", SGD)


def whole_step(step: Callable[[], Any], optimizer: torch.optim.Optimizer) -> Work:
    """Return ``step`` followed by the optimizer."""

    def work() -> None:
        step()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return work


def compare_training(
    name: str, ours: Work, reference: Work, *, images: int, device: str, rounds: int, in_a_row: int,
    peak_side: int,
) -> Iterator[tuple[str, Figure]]:  # fmt: skip
    """Compare two steps of :func:`whole_step`; yield the figures ``gpu_<name>_*``.

    ``images`` go through the backbone in a step. A round has ``in_a_row`` steps; the host waits
    for the GPU after the last one, as in training. Square matrices of side ``peak_side`` give the
    peak.
    """
    times = time_steps(ours, reference, rounds=rounds, in_a_row=in_a_row, device=device)
    rates = [[images / spent for spent in each] for each in times]
    yield f"gpu_{name}_images", make_figure(rates, f"images per s, {images} in a step", rate=True)
    minutes = [[SCHEDULE * spent / 60 for spent in each] for each in times]
    unit = f"minutes for {SCHEDULE} steps, 120 epochs, without a loader"
    yield f"gpu_{name}_schedule", make_figure(minutes, unit)
    flops, peak = count_flops(ours), measure_peak(device, peak_side)
    shares = [[flops / spent / peak for spent in each] for each in times]
    unit = f"of {peak / 1e12:.3g} TFLOP/s, what a bf16 matrix product reaches"
    yield f"gpu_{name}_share", make_figure(shares, unit, rate=True)
    if device != "cpu":
        memory = [[measure_memory(work) / 1e9] for work in (ours, reference)]
        yield f"gpu_{name}_memory", make_figure(memory, f"GB beside the weights, {images} images")


def time_steps(
    ours: Work, reference: Work, *, rounds: int, in_a_row: int, device: str
) -> list[list[float]]:
    """Return the seconds per step in each round, ours and the reference's."""

    def repeated(work: Work) -> Work:
        return lambda: [work() for _ in range(in_a_row)]

    times = time_alternately(repeated(ours), repeated(reference), rounds=rounds, device=device)
    return [[spent / in_a_row for spent in each] for each in times]


def count_flops(work: Work) -> int:
    """Return the FLOPs of all matrix products; attention counts as its products."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@functools.cache
def measure_peak(device: str, side: int) -> float:
    """Return the FLOP/s of a bf16 matrix product, best of ten."""
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / min(measure_seconds(lambda: one @ other, device) for _ in range(10))


def measure_memory(work: Work) -> int:
    """Return the peak GPU memory of ``work`` in bytes, beyond what was allocated before."""
    torch.cuda.reset_measure_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before
