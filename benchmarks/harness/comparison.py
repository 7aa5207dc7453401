"""Compare two implementations of the same work: check that they agree, then time them."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.benchmark import timer as synchronized_timer

Work = Callable[[], Any]


class MismatchError(Exception):
    """Ours and the reference give different results, so there is nothing to compare."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """The result of one comparison."""

    ours: float  # median cost, or rate
    reference: float
    ratio: float | None  # how many times better ours is; None if ours costs nothing
    unit: str  # of ours and reference, with the size of the work
    spread: list[float]  # minimum and maximum ratio of a round; empty for counts


Figures = Iterator[tuple[str, Figure]]


def make_figure(values: Sequence[Sequence[float]], unit: str, *, rate: bool = False) -> Figure:
    """Summarize one value per round of ours and of the reference; of a ``rate``, more is better.

    >>> make_figure(([1, 2, 9], [4, 4, 9]), "s")
    Figure(ours=2, reference=4, ratio=2.0, unit='s', spread=[1.0, 4.0])
    """
    ours, reference = values
    medians = statistics.median(ours), statistics.median(reference)
    rounds = [_ratio(*pair, rate) for pair in zip(ours, reference, strict=True)]
    ratios = [ratio for ratio in rounds if ratio is not None]
    spread = [min(ratios), max(ratios)] if len(ratios) > 1 else []
    return Figure(*medians, _ratio(*medians, rate), unit, spread)


def _ratio(ours: float, reference: float, rate: bool) -> float | None:
    worse, better = (reference, ours) if rate else (ours, reference)
    return better / worse if worse else None


def time_alternately(
    ours: Work, reference: Work, *, rounds: int, device: str = "cpu", in_a_row: int = 1
) -> list[list[float]]:
    """Return the seconds of each round: ours, reference, ours, reference, ...

    A round runs each ``in_a_row`` times and divides; the host waits for a GPU only after the last.
    The first round is not in the result.
    """

    def measure(work: Work) -> float:
        return measure_seconds(lambda: [work() for _ in range(in_a_row)], device) / in_a_row

    pairs = [(measure(ours), measure(reference)) for _ in range(rounds + 1)]
    return [list(each) for each in zip(*pairs[1:], strict=True)]


def measure_seconds(work: Work, device: str = "cpu") -> float:
    """Return how long ``work`` takes."""
    clock = choose_clock(device)
    start = clock()
    work()
    return clock() - start


def choose_clock(device: str = "cpu") -> Callable[[], float]:
    """Return processor time for one thread on a CPU, which other programs disturb least.

    Otherwise return PyTorch's wall clock, which waits for the GPU.
    """
    one_thread = device == "cpu" and torch.get_num_threads() == 1
    return time.process_time if one_thread else synchronized_timer


def require_equal(name: str, ours: Any, reference: Any, *, atol: float, rtol: float = 0.0) -> None:
    """Raise MismatchError, with the difference, unless two arrays or tensors agree."""
    one, other = (np.asarray(torch.as_tensor(each).detach().cpu()) for each in (ours, reference))
    if one.shape != other.shape:
        raise MismatchError(f"{name}: ours has the shape {one.shape}, the reference {other.shape}")
    if not np.allclose(one, other, rtol=rtol, atol=atol):
        difference = float(np.abs(one.astype(np.float64) - other).max())
        raise MismatchError(f"{name}: ours and the reference differ by up to {difference:.3g}")
