"""Confidence intervals of means over queries.

Shapes: V valid queries, M metrics.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
CHUNK = 100  # resamples at a time


class Interval(NamedTuple):
    """A mean and its 95 % confidence interval."""

    value: float
    low: float
    high: float


def bootstrap_means(per_query: dict[str, np.ndarray]) -> dict[str, Interval]:
    """Return the mean of each metric over the queries, (V,) each, with its 95 % bootstrap interval.

    The interval is the 2.5th and 97.5th percentile of the mean over 1,000 resamples of the V
    queries, drawn with replacement from a fixed seed. All metrics share the resamples. Applied to
    differences between two runs on the same queries, it is the paired bootstrap.

    >>> bootstrap_means({"mAP": np.array([100.0, 100.0])})
    {'mAP': Interval(value=100.0, low=100.0, high=100.0)}
    """
    values = np.stack(list(per_query.values()), axis=1)  # (V, M)
    queries = len(values)
    rng = np.random.default_rng(0)
    probabilities = np.full(queries, 1 / queries)
    means = [
        rng.multinomial(queries, probabilities, CHUNK) @ values / queries
        for _ in range(RESAMPLES // CHUNK)
    ]
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5), axis=0)
    columns = values.mean(0).tolist(), low.tolist(), high.tolist()
    return dict(zip(per_query, map(Interval, *columns), strict=True))
