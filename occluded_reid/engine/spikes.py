"""Warn once of a loss that jumps but stays finite; the run goes on."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence

import numpy as np

logger = logging.getLogger(__name__)

WINDOW = 100  # iterations that the median covers, and for which a term is not warned of again
MIN_HISTORY = 20  # iterations before the first check, at the start of a run and after a resume
MIN_FRACTION = 0.01  # of the total, which a median is raised to: near 0, everything is a jump


class SpikeDetector:
    """Warns of a loss term above ``factor * max(its median, 0.01 * median of the total)``.

    The medians run over the last iterations; the factor 0 turns the warning off.
    """

    def __init__(self, factor: float):
        self._factor = factor
        self._names: tuple[str, ...] = ()
        self._history: deque[np.ndarray] = deque(maxlen=WINDOW)
        self._muted_until: dict[str, int] = {}

    def update(self, iteration: int, names: Sequence[str], values: np.ndarray) -> None:
        """Check the ``values`` (T,) of the T terms ``names``, then add them to the history."""
        if not self._factor:
            return
        if self._names != tuple(names):
            self._names = tuple(names)
            self._history.clear()
        if len(self._history) >= MIN_HISTORY:
            self._check(iteration, values)
        self._history.append(np.append(values, values.sum()))

    def _check(self, iteration: int, values: np.ndarray) -> None:
        *medians, total = np.median(self._history, axis=0)
        for name, value, median in zip(self._names, values, medians, strict=True):
            normal = max(median, MIN_FRACTION * total)
            if value <= self._factor * normal or iteration < self._muted_until.get(name, 0):
                continue
            self._muted_until[name] = iteration + WINDOW
            logger.warning(
                f"{name} jumped to {value:.4g} at iteration {iteration}; its median over the last "
                f"{len(self._history)} is {median:.4g} (SOLVER.SPIKE_FACTOR {self._factor:g}). If "
                "the loss does not recover: a smaller SOLVER.BASE_LR, a longer "
                "SOLVER.WARMUP_ITERS or SOLVER.CLIP_GRADIENTS.ENABLED True"
            )
