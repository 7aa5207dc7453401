"""Losses that jump and stay finite: one warning, and the run goes on."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence

import numpy as np

logger = logging.getLogger(__name__)

WINDOW = 100
"""Iterations that the median is taken over; after a warning a term is silent for as many."""

LEAST_HISTORY = 20
"""Iterations without a judgement at the start of a run, or of its resumption."""

LEAST_SHARE = 0.01
"""A term counts as no smaller than this fraction of the total: near 0 everything is a jump."""


class SpikeWatch:
    """Compares each loss term with ``factor`` times its running median.

    Args:
        factor: a term above ``factor * max(median, 0.01 * median of the total)`` is named; 0 is
            never.
    """

    def __init__(self, factor: float):
        self._factor = factor
        self._names: tuple[str, ...] = ()
        self._recent: deque[np.ndarray] = deque(maxlen=WINDOW)
        self._silent_until: dict[str, int] = {}

    def look(self, iteration: int, names: Sequence[str], row: np.ndarray) -> None:
        """Judge the terms of one iteration, then count them as normal ones.

        Args:
            iteration: its number.
            names: of the terms.
            row: their values.
        """
        if not self._factor:
            return
        if self._names != tuple(names):
            self._names = tuple(names)
            self._recent.clear()
        if len(self._recent) >= LEAST_HISTORY:
            self._judge(iteration, row)
        self._recent.append(np.append(row, row.sum()))

    def _judge(self, iteration: int, row: np.ndarray) -> None:
        *medians, total = np.median(self._recent, axis=0)
        for name, value, median in zip(self._names, row, medians, strict=True):
            normal = max(median, LEAST_SHARE * total)
            if value <= self._factor * normal or iteration < self._silent_until.get(name, 0):
                continue
            self._silent_until[name] = iteration + WINDOW
            logger.warning(
                f"{name} jumped to {value:.4g} at iteration {iteration}; its median of the last "
                f"{len(self._recent)} is {median:.4g} (SOLVER.SPIKE_FACTOR {self._factor:g}). If "
                "the loss does not come back: a smaller SOLVER.BASE_LR, a longer "
                "SOLVER.WARMUP_ITERS or SOLVER.CLIP_GRADIENTS.ENABLED True"
            )
