"""Metrics by kind and degree of occlusion, on data sets with occlusion truth.

Shapes: Q queries, N images, P stripes or other parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from occluded_reid.evaluation.bootstrap import bootstrap_means
from occluded_reid.evaluation.ranking import Ranking

LEVELS = ((0.9, 1.01), (0.7, 0.9), (0.5, 0.7), (0.0, 0.5))
VISIBLE_FROM = 0.25  # of the person's pixels in a stripe; FED labels it hidden above 3/4 occlusion
TRUTH_STRIPES = 16
BINS = 10


class StripeTruth(NamedTuple):
    """The true visibility of each stripe."""

    visible: np.ndarray  # (N, P) bool: at least a quarter of the person's pixels is visible
    valid: np.ndarray  # (N, P) bool: the stripe holds a part of the person
    kinds: np.ndarray  # (N,) kinds of occlusion


def measure_by_occlusion(
    ranking: Ranking, query_paths: np.ndarray, truth: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return Rank-1 and mAP (per cent) by visible fraction and by kind of occlusion.

    ``query_paths`` are those of all Q queries; ``truth`` holds by path the records, with
    ``visible_fraction`` in [0, 1] and ``occlusion``.

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
    metrics = ranking.compute_metrics()
    return {
        name: _summarize_group(metrics["Rank-1"][mask], metrics["mAP"][mask])
        for name, mask in masks.items()
        if mask.any()
    }


def measure_visibility(
    visibility: np.ndarray, paths: np.ndarray, truth: Mapping[str, Any], *, stripes: bool
) -> dict[str, Any]:
    """Return the report's entries on (Q, P) visibility of ``stripes`` or other parts."""
    parts = visibility.shape[1]
    if not parts:  # the model predicts none
        return {}
    report: dict[str, Any] = {
        "image_visibility": measure_image_visibility(visibility, paths, truth)
    }
    if stripes and TRUTH_STRIPES % parts == 0:
        report |= measure_stripe_visibility(visibility, paths, truth)
    return report


def _summarize_group(rank_1: np.ndarray, precision: np.ndarray) -> dict[str, Any]:
    means = bootstrap_means({"Rank-1": rank_1, "mAP": precision})
    return {
        "queries": len(precision),
        **{name: mean.value for name, mean in means.items()},
        "intervals": {name: [mean.low, mean.high] for name, mean in means.items()},
    }


def read_stripe_truth(paths: Iterable[str], truth: Mapping[str, Any], stripes: int) -> StripeTruth:
    """Return the truth of P stripes, a divisor of 16, of N images.

    ``truth`` holds by path the records, with ``occlusion`` and 16 ``stripe_person_pixels`` and
    ``stripe_visible_pixels`` each.
    """
    records = [truth[path] for path in paths]
    shape = (len(records), stripes, -1)
    person = np.reshape([r.stripe_person_pixels for r in records], shape).sum(2)
    visible = np.reshape([r.stripe_visible_pixels for r in records], shape).sum(2)
    kinds = np.array([record.occlusion for record in records])
    return StripeTruth(visible >= VISIBLE_FROM * person, person > 0, kinds)


def measure_stripe_visibility(
    visibility: np.ndarray, paths: Iterable[str], truth: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the report's entries on how well predicted visibility fits the stripes' truth.

    See :func:`measure_visibility_auc` for the arguments.
    """
    stripes = read_stripe_truth(paths, truth, visibility.shape[1])
    columns = zip(stripes.visible.T, visibility.T, stripes.valid.T, strict=True)
    return {
        "visibility_auc": measure_visibility_auc(visibility, paths, truth),
        "visibility_auc_per_stripe": [
            _compute_auc(labels[valid], scores[valid]) for labels, scores, valid in columns
        ],
        "visibility_calibration": measure_calibration(
            visibility[stripes.valid], stripes.visible[stripes.valid]
        ),
    }


def measure_visibility_auc(
    visibility: np.ndarray, paths: Iterable[str], truth: Mapping[str, Any]
) -> dict[str, float]:
    """Return how well predicted visibility separates visible from hidden stripes.

    The area under the ROC curve over all stripes that hold a part of the person, for all images and
    by kind of occlusion: 0.5 is random, 1 is perfect. A stripe is hidden if less than a quarter of
    the person's pixels in it is visible. Groups with one class only are left out.

    Args:
        visibility: (N, P) in [0, 1]; P divides 16.
        paths: (N,) image paths.
        truth: as for :func:`read_stripe_truth`.
    """
    stripes = read_stripe_truth(paths, truth, visibility.shape[1])
    groups = {"all": np.ones(len(stripes.kinds), bool)}
    groups |= {str(kind): stripes.kinds == kind for kind in np.unique(stripes.kinds)}
    areas = {}
    for name, members in groups.items():
        mask = stripes.valid & members[:, None]
        if (auc := _compute_auc(stripes.visible[mask], visibility[mask])) is not None:
            areas[name] = auc
    return areas


def measure_calibration(predicted: np.ndarray, visible: np.ndarray) -> dict[str, Any]:
    """Return how well predicted visibility, (n,) in [0, 1], can be read as a probability.

    Ten ``bins`` of equal width, without the empty ones; the ``expected_error`` of the calibration
    is ``sum_b n_b / n |v_b - p_b|`` with the fraction v_b of ``visible`` stripes, (n,) bool, and
    the mean prediction p_b in bin b: 0 is perfect.
    """
    indices = np.clip((predicted * BINS).astype(int), 0, BINS - 1)
    bins = []
    for index in np.unique(indices):
        inside = indices == index
        means = {"predicted": predicted[inside].mean(), "visible": visible[inside].mean()}
        bins.append(
            {"low": index / BINS, "high": (index + 1) / BINS, "stripes": int(inside.sum())}
            | {name: float(mean) for name, mean in means.items()}
        )
    gaps = sum(b["stripes"] * abs(b["visible"] - b["predicted"]) for b in bins)
    return {"expected_error": gaps / max(1, len(visible)), "bins": bins}


def measure_image_visibility(
    visibility: np.ndarray, paths: Iterable[str], truth: Mapping[str, Any]
) -> dict[str, float]:
    """Return how well the mean visibility of an image's parts predicts its visible fraction.

    Works for parts (N, P) of any kind, such as AONet's landmarks.

    Returns:
        ``auc`` (images with at least 90 % visible against the others) and ``rank_correlation`` with
        the visible fraction (Spearman's, in [-1, 1]); undefined values are left out.
    """
    from scipy.stats import spearmanr

    mean = visibility.mean(axis=1)
    fraction = np.array([truth[path].visible_fraction for path in paths])
    metrics = {"auc": _compute_auc(fraction >= LEVELS[0][0], mean)}
    if np.ptp(mean) > 0 and np.ptp(fraction) > 0:
        metrics["rank_correlation"] = float(spearmanr(mean, fraction).statistic)
    return {name: value for name, value in metrics.items() if value is not None}


def _compute_auc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores)) if len(np.unique(labels)) == 2 else None
