"""A run's results.json with given average precisions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from occluded_reid.evaluation.ranking import Ranking
from occluded_reid.evaluation.results import pack_queries, report_queries, summarize_ranking

QUERIES = 200


def write_run(
    folder: Path, precision: np.ndarray, *, names: Sequence[str] | None = None, seed: int = 0,
    positives: int = 3, data_sets: Sequence[str] = ("Set",), rules: Mapping[str, str] | None = None,
    **counts: float,
) -> Path:  # fmt: skip
    """Write results.json into ``folder``; queries with precision above 1/2 are hits."""
    folder.mkdir(parents=True)
    count = len(precision)
    ranking = Ranking(
        np.arange(count), np.full(count, positives), np.where(precision > 0.5, 1, 20),
        precision, np.full(count, positives / 40),
    )  # fmt: skip
    names = np.array([f"{folder}/query/{n}.jpg" for n in range(count)] if names is None else names)
    report = {
        "metrics": summarize_ranking(ranking),
        "counts": {
            "queries": count, "queries_without_positive": 0, "gallery": 900,
            "positives_per_query": float(positives), **counts,
        },
        **(rules or {}),
        "per_query": pack_queries(report_queries(names, ranking)),
    }  # fmt: skip
    content = {
        "data_sets": {name: report for name in data_sets},
        "seed": seed,
        "weights_sha256": str(folder),
    }
    (folder / "results.json").write_text(json.dumps(content))
    return folder
