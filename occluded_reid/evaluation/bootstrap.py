"""How sure a mean over queries is.

Shapes: V valid queries, M measures.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from occluded_reid.evaluation.ranking import Ranking

RESAMPLES = 1000
AT_A_TIME = 100


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    value: float
    low: float
    high: float


def measures(ranking: Ranking) -> dict[str, np.ndarray]:
    """Return Rank-1/3/5/10, mAP and mINP of each query by name, (V,) in per cent."""
    found = {f"Rank-{k}": ranking.rank_k(k) for k in (1, 3, 5, 10)}
    found["mAP"] = ranking.average_precision
    found["mINP"] = ranking.inverse_negative_penalty
    return {name: 100 * values for name, values in found.items()}


def intervals(per_query: dict[str, np.ndarray]) -> dict[str, Interval]:
    """Return the mean of each measure over the queries, with its 95 % interval.

    The interval is the bootstrap's over queries: the 2.5th and 97.5th percentile of the mean over
    1,000 resamples of the V queries, drawn with replacement from a fixed seed. All measures are
    resampled together; of the differences between two runs on the same queries it is the paired
    interval.

    Args:
        per_query: (V,) values of each of M measures by name.
    """
    values = np.stack(list(per_query.values()), axis=1)  # (V, M)
    queries = len(values)
    random = np.random.default_rng(0)
    chances = np.full(queries, 1 / queries)
    resampled = [
        random.multinomial(queries, chances, AT_A_TIME) @ values / queries
        for _ in range(RESAMPLES // AT_A_TIME)
    ]
    low, high = np.percentile(np.concatenate(resampled), (2.5, 97.5), axis=0)
    columns = values.mean(0).tolist(), low.tolist(), high.tolist()
    return dict(zip(per_query, map(Interval, *columns), strict=True))
