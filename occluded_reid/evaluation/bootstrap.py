"""Confidence intervals of means over queries.

Shapes: V valid queries, M metrics, S runs of one method.
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


def bootstrap_difference(one: np.ndarray, other: np.ndarray) -> Interval:
    """Return the difference ``other`` - ``one`` of two methods' means, with its 95 % interval.

    Each is (S, V), a metric by run and query, S of its own, V the same queries. A resample draws
    queries, the same for both methods (paired), and runs of each method, all with replacement. With
    one run of each it is :func:`bootstrap_means` of the difference; a few runs tell little of the
    spread between seeds, so the interval is a lower bound of it then.

    >>> bootstrap_difference(np.zeros((3, 5)), np.ones((2, 5)))
    Interval(value=1.0, low=1.0, high=1.0)
    """
    rng, queries = np.random.default_rng(0), one.shape[1]
    probabilities = np.full(queries, 1 / queries)
    drawn = [rng.multinomial(queries, probabilities, CHUNK) for _ in range(RESAMPLES // CHUNK)]
    means = []
    for runs in (one, other):
        by_run = np.concatenate([counts @ runs.T for counts in drawn]) / queries  # (resamples, S)
        shares = rng.multinomial(len(runs), np.full(len(runs), 1 / len(runs)), RESAMPLES)
        means.append((by_run * shares).sum(axis=1) / len(runs))
    low, high = np.percentile(means[1] - means[0], (2.5, 97.5))
    return Interval(float(other.mean() - one.mean()), float(low), float(high))
