"""Metrics by how, and by how much, a query is occluded; for data sets that know the truth.

Shapes: Q queries, V of them with a positive, P stripes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from occluded_reid.evaluation.ranking import Ranking

LEVELS = ((0.9, 1.01), (0.7, 0.9), (0.5, 0.7), (0.0, 0.5))
HIDDEN_BELOW = 0.25  # of the person's pixels in a stripe; FED's label: more than 3/4 covered


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


def visibility_auc(
    visibility: np.ndarray, paths: np.ndarray, truth: Mapping[str, Any]
) -> dict[str, float]:
    """Return how well predicted visibility tells visible stripes from hidden ones.

    The area under the ROC curve over all stripes that hold a part of the person, for all images and
    for each kind of occlusion: 0.5 is chance, 1 is perfect. A stripe is hidden where less than a
    quarter of the person's pixels in it can be seen. Groups without both classes are left out.

    Args:
        visibility: (Q, P) in [0, 1]; P divides 16.
        paths: (Q,) image paths.
        truth: records with ``stripe_person_pixels`` and ``stripe_visible_pixels`` (16 each).
    """
    records = [truth[path] for path in paths]
    stripes = (len(records), visibility.shape[1], -1)
    person = np.reshape([r.stripe_person_pixels for r in records], stripes).sum(2)
    visible = np.reshape([r.stripe_visible_pixels for r in records], stripes).sum(2)
    seen = visible >= HIDDEN_BELOW * person
    kinds = np.array([record.occlusion for record in records])
    groups = {"all": np.ones(len(records), bool)} | {k: kinds == k for k in np.unique(kinds)}
    found = {}
    for name, members in groups.items():
        counted = (person > 0) & members[:, None]
        if len(np.unique(seen[counted])) == 2:
            found[str(name)] = float(roc_auc_score(seen[counted], visibility[counted]))
    return found
