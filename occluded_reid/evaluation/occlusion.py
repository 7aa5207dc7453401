"""Metrics by how, and by how much, a query is occluded; for data sets that know the truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from occluded_reid.evaluation.ranking import Ranking

LEVELS = ((0.9, 1.01), (0.7, 0.9), (0.5, 0.7), (0.0, 0.5))


def by_occlusion(
    ranking: Ranking, query_paths: np.ndarray, truth: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return Rank-1 and mAP (per cent) by visible fraction and by kind of occlusion.

    Args:
        ranking: of V valid queries.
        query_paths: (Q,) image paths of all queries.
        truth: records with ``visible_fraction`` in [0, 1] and ``occlusion``, by path.
    """
    records = [truth[path] for path in query_paths[ranking.query]]
    visible = np.array([record.visible_fraction for record in records])
    kinds = np.array([record.occlusion for record in records])
    masks = {
        f"visible {low:.1f}-{min(high, 1):.1f}": (low <= visible) & (visible < high)
        for low, high in LEVELS
    }
    masks |= {kind: kinds == kind for kind in np.unique(kinds)}
    return {
        str(name): {
            "queries": int(mask.sum()),
            "Rank-1": 100 * float(ranking.rank_k(1)[mask].mean()),
            "mAP": 100 * float(ranking.average_precision[mask].mean()),
        }
        for name, mask in masks.items()
        if mask.any()
    }
