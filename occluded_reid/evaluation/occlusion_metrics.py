"""Metrics by how, and by how much, a query is occluded; for data sets that know the truth.

Shapes: Q queries, V of them with a positive, N images, P stripes or other parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from occluded_reid.evaluation.bootstrap import intervals, measures
from occluded_reid.evaluation.ranking import Ranking

LEVELS = ((0.9, 1.01), (0.7, 0.9), (0.5, 0.7), (0.0, 0.5))
HIDDEN_BELOW = 0.25  # of the person's pixels in a stripe; FED's label: more than 3/4 covered
TRUTH_STRIPES = 16
BINS = 10


class StripeTruth(NamedTuple):
    """What a model should say of each stripe.

    Attributes:
        seen: (N, P) bool, at least a quarter of the person's pixels in the stripe can be seen.
        counted: (N, P) bool, the stripe holds a part of the person.
        kinds: (N,) names of occlusions.
    """

    seen: np.ndarray
    counted: np.ndarray
    kinds: np.ndarray


def by_occlusion(
    ranking: Ranking, query_paths: np.ndarray, truth: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return Rank-1 and mAP (per cent) by visible fraction and by kind of occlusion.

    Args:
        ranking: of V valid queries.
        query_paths: (Q,) image paths of all queries.
        truth: records with ``visible_fraction`` in [0, 1] and ``occlusion``, by path.

    Returns:
        By group ``queries``, ``Rank-1``, ``mAP`` and their 95 % ``intervals`` [low, high].
    """
    records = [truth[path] for path in query_paths[ranking.query]]
    visible = np.array([record.visible_fraction for record in records])
    kinds = np.array([record.occlusion for record in records])
    masks = {
        f"visible {low:.1f}-{min(high, 1):.1f}": (low <= visible) & (visible < high)
        for low, high in LEVELS
    }
    masks |= {str(kind): kinds == kind for kind in np.unique(kinds)}
    per_query = {name: measures(ranking)[name] for name in ("Rank-1", "mAP")}
    return {
        name: _group({metric: values[mask] for metric, values in per_query.items()})
        for name, mask in masks.items()
        if mask.any()
    }


def _group(per_query: dict[str, np.ndarray]) -> dict[str, Any]:
    found = intervals(per_query)
    return {
        "queries": len(per_query["mAP"]),
        **{name: each.value for name, each in found.items()},
        "intervals": {name: [each.low, each.high] for name, each in found.items()},
    }


def stripe_truth(paths: Iterable[str], truth: Mapping[str, Any], stripes: int) -> StripeTruth:
    """Return the truth of so many stripes.

    Args:
        paths: (N,) image paths.
        truth: records with ``stripe_person_pixels`` and ``stripe_visible_pixels`` (16 each) and
            ``occlusion``, by path.
        stripes: P, which divides 16.
    """
    records = [truth[path] for path in paths]
    shape = (len(records), stripes, -1)
    person = np.reshape([r.stripe_person_pixels for r in records], shape).sum(2)
    visible = np.reshape([r.stripe_visible_pixels for r in records], shape).sum(2)
    kinds = np.array([record.occlusion for record in records])
    return StripeTruth(visible >= HIDDEN_BELOW * person, person > 0, kinds)


def visibility_of_stripes(
    visibility: np.ndarray, paths: Iterable[str], truth: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the report's entries on how well predicted visibility fits the stripes' truth.

    Args:
        visibility: (N, P) in [0, 1], of P stripes; P divides 16.
        paths: (N,) image paths.
        truth: as :func:`stripe_truth` wants it.
    """
    known = stripe_truth(paths, truth, visibility.shape[1])
    seen, counted = known.seen, known.counted
    each = zip(visibility.T, seen.T, counted.T, strict=True)
    return {
        "visibility_auc": visibility_auc(visibility, paths, truth),
        "visibility_auc_per_stripe": [
            _auc(labels[known_here], scores[known_here]) for scores, labels, known_here in each
        ],
        "visibility_calibration": calibration(visibility[counted], seen[counted]),
    }


def visibility_auc(
    visibility: np.ndarray, paths: Iterable[str], truth: Mapping[str, Any]
) -> dict[str, float]:
    """Return how well predicted visibility tells visible stripes from hidden ones.

    The area under the ROC curve over all stripes that hold a part of the person, for all images and
    for each kind of occlusion: 0.5 is chance, 1 is perfect. A stripe is hidden where less than a
    quarter of the person's pixels in it can be seen. Groups without both classes are left out.

    Args:
        visibility: (N, P) in [0, 1]; P divides 16.
        paths: (N,) image paths.
        truth: as :func:`stripe_truth` wants it.
    """
    known = stripe_truth(paths, truth, visibility.shape[1])
    groups = {"all": np.ones(len(known.kinds), bool)}
    groups |= {str(kind): known.kinds == kind for kind in np.unique(known.kinds)}
    found = {}
    for name, members in groups.items():
        counted = known.counted & members[:, None]
        if (auc := _auc(known.seen[counted], visibility[counted])) is not None:
            found[name] = auc
    return found


def calibration(predicted: np.ndarray, seen: np.ndarray) -> dict[str, Any]:
    """Return how far predicted visibility can be read as the chance of being visible.

    Ten bins of equal width; the expected calibration error is ``sum_b n_b / n |v_b - p_b|`` with
    the share v_b of visible stripes and the mean prediction p_b in bin b: 0 is perfect.

    Args:
        predicted: (n,) in [0, 1].
        seen: (n,) bool.

    Returns:
        ``expected_error`` and ``bins`` that hold stripes: ``low``, ``high``, ``stripes``,
        ``predicted`` and ``visible``.
    """
    number = np.clip((predicted * BINS).astype(int), 0, BINS - 1)
    bins = []
    for each in np.unique(number):
        inside = number == each
        bins.append(
            {
                "low": each / BINS,
                "high": (each + 1) / BINS,
                "stripes": int(inside.sum()),
                "predicted": float(predicted[inside].mean()),
                "visible": float(seen[inside].mean()),
            }
        )
    gaps = sum(b["stripes"] * abs(b["visible"] - b["predicted"]) for b in bins)
    return {"expected_error": gaps / max(1, len(seen)), "bins": bins}


def visibility_of_images(
    visibility: np.ndarray, paths: Iterable[str], truth: Mapping[str, Any]
) -> dict[str, float]:
    """Return how well the mean visibility of an image's parts tells how occluded it is.

    Parts may be anything, such as AONet's landmarks.

    Args:
        visibility: (N, P) in [0, 1].
        paths: (N,) image paths.
        truth: records with ``visible_fraction`` by path.

    Returns:
        ``auc`` (images of which at least 90 % can be seen against the others) and
        ``rank_correlation`` with the visible fraction (Spearman's, in [-1, 1]); what is not defined
        is left out.
    """
    mean = visibility.mean(axis=1)
    fraction = np.array([truth[path].visible_fraction for path in paths])
    found = {"auc": _auc(fraction >= LEVELS[0][0], mean)}
    if np.ptp(mean) > 0 and np.ptp(fraction) > 0:
        found["rank_correlation"] = float(spearmanr(mean, fraction).statistic)
    return {name: value for name, value in found.items() if value is not None}


def _auc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    return float(roc_auc_score(labels, scores)) if len(np.unique(labels)) == 2 else None
