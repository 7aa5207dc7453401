"""Two ways to do the same work, side by side: first whether they agree, then what they cost."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

Work = Callable[[], Any]


class Unequal(Exception):
    """Ours and the reference do not come to the same result: there is nothing to compare."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """What one comparison gave.

    Attributes:
        ours: median cost, or rate.
        reference: likewise.
        ratio: how many times better ours is; None where ours costs nothing at all.
        unit: of the first two, with the size of the work.
        spread: least and largest ratio of a round; empty for what is counted.
    """

    ours: float
    reference: float
    ratio: float | None
    unit: str
    spread: list[float]


def figure(values: Sequence[Sequence[float]], unit: str, *, rate: bool = False) -> Figure:
    """Sum the rounds up.

    Args:
        values: ours, one per round, and the reference's likewise.
        unit: of the values.
        rate: more is better; else less is.
    """
    ours, reference = values
    middle = statistics.median(ours), statistics.median(reference)
    rounds = [_better(*pair, rate) for pair in zip(ours, reference, strict=True)]
    known = [ratio for ratio in rounds if ratio is not None]
    spread = [min(known), max(known)] if len(known) > 1 else []
    return Figure(middle[0], middle[1], _better(*middle, rate), unit, spread)


def _better(ours: float, reference: float, rate: bool) -> float | None:
    below, above = (reference, ours) if rate else (ours, reference)
    return above / below if below else None


def time_alternately(
    ours: Work, reference: Work, *, rounds: int, device: str = "cpu"
) -> tuple[list[float], list[float]]:
    """Return the seconds of each round: ours, reference, ours, reference, ...

    With one thread on a CPU these are seconds of processor time: what else runs on the machine
    disturbs them less than the time on the wall. Each is done once before, unmeasured.
    """
    for work in (ours, reference):
        seconds(work, device)
    pairs = [(seconds(ours, device), seconds(reference, device)) for _ in range(rounds)]
    first, second = zip(*pairs, strict=True)
    return list(first), list(second)


def seconds(work: Work, device: str = "cpu") -> float:
    """Return how long ``work`` takes, by :func:`clock`."""
    now = clock(device)
    start = now()
    work()
    return now() - start


def clock(device: str = "cpu") -> Callable[[], float]:
    """Return what tells the time: of the processor with one thread on a CPU, else on the wall.

    On a GPU it waits until all work is done.
    """
    if device == "cpu":
        return time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def after_the_work() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return after_the_work


def require_equal(name: str, ours: Any, reference: Any, *, atol: float, rtol: float = 0.0) -> None:
    """Check that two arrays or tensors agree.

    Raises:
        Unequal: they do not; the message says by how much.
    """
    one, other = (np.asarray(torch.as_tensor(each).detach().cpu()) for each in (ours, reference))
    if one.shape != other.shape:
        raise Unequal(f"{name}: ours has the shape {one.shape}, the reference {other.shape}")
    if not np.allclose(one, other, rtol=rtol, atol=atol):
        off = float(np.abs(one.astype(np.float64) - other).max())
        raise Unequal(f"{name}: ours and the reference differ by up to {off:.3g}")
