"""Metrics by occlusion, and how well predicted visibility fits the truth, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from occluded_reid.evaluation.occlusion_metrics import (
    measure_by_occlusion,
    measure_calibration,
    measure_image_visibility,
    measure_stripe_visibility,
    measure_visibility_auc,
)
from occluded_reid.evaluation.ranking import Ranking


def test_metrics_by_occlusion():
    precision = np.array([1.0, 0.4, 0.8])
    ranking = Ranking(np.array([0, 2, 3]), np.ones(3), np.array([1, 7, 1]), precision, precision)
    truth = {
        name: SimpleNamespace(visible_fraction=visible, occlusion=kind)
        for name, visible, kind in (
            ("a", 1.0, "none"), ("b", 0.1, "horizontal"),
            ("c", 0.6, "horizontal"), ("d", 0.55, "pedestrian"),
        )
    }  # fmt: skip
    result = measure_by_occlusion(ranking, np.array(["a", "b", "c", "d"]), truth)
    constant = {"Rank-1": [100, 100], "mAP": [100, 100]}
    assert result["visible 0.9-1.0"] == {
        "queries": 1, "Rank-1": 100, "mAP": 100, "intervals": constant,
    }  # fmt: skip
    assert result["visible 0.5-0.7"]["queries"] == 2
    assert result["visible 0.5-0.7"]["mAP"] == pytest.approx(60)
    low, high = result["visible 0.5-0.7"]["intervals"]["mAP"]
    assert (low, high) == pytest.approx((40, 80))  # two queries
    assert result["horizontal"]["Rank-1"] == 0 and result["horizontal"]["mAP"] == pytest.approx(40)
    assert "visible 0.0-0.5" not in result  # its only query has no positive


def test_visibility_auc_against_the_truth_by_hand():
    """Two images of two stripes; the second stripe of "b" is empty and not counted."""

    def record(person, visible, kind):
        spread = [[value / 8] * 8 for value in (*person, *visible)]
        return SimpleNamespace(
            stripe_person_pixels=spread[0] + spread[1],
            stripe_visible_pixels=spread[2] + spread[3],
            occlusion=kind,
        )

    truth = {
        "a": record((80, 80), (80, 16), "horizontal"),  # 100 % and 20 %: visible, hidden
        "b": record((80, 0), (40, 0), "vertical"),  # 50 %: visible
    }
    paths = np.array(["a", "b"])
    right = measure_visibility_auc(np.array([[0.9, 0.2], [0.6, 0.0]]), paths, truth)
    assert right == {"all": 1.0, "horizontal": 1.0}  # "vertical" has visible stripes only
    half = measure_visibility_auc(np.array([[0.9, 0.5], [0.4, 0.0]]), paths, truth)
    assert half == {"all": 0.5, "horizontal": 1.0}


def test_calibration_by_hand():
    """Two bins: 0.05 and 0.05 of which one is visible, 1.0 and 0.9 that are both visible."""
    result = measure_calibration(
        np.array([0.05, 0.05, 1.0, 0.9]), np.array([True, False, True, True])
    )
    first, last = result["bins"]
    assert first == {
        "low": 0, "high": 0.1, "stripes": 2, "predicted": pytest.approx(0.05), "visible": 0.5,
    }  # fmt: skip
    assert (last["low"], last["high"], last["stripes"]) == (0.9, 1, 2)
    assert result["expected_error"] == pytest.approx((0.45 + 0.05) / 2)
    assert measure_calibration(np.empty(0), np.empty(0, bool)) == {"expected_error": 0, "bins": []}


def test_a_calibrated_prediction_has_no_error():
    rng = np.random.default_rng(0)
    predicted = rng.random(200_000)
    visible = rng.random(200_000) < predicted
    assert measure_calibration(predicted, visible)["expected_error"] < 0.01
    assert measure_calibration(predicted, ~visible)["expected_error"] > 0.4


def test_visibility_of_stripes_and_of_images():
    """The first stripe is always predicted right, the second always wrong."""
    truth = {
        name: SimpleNamespace(
            occlusion="horizontal",
            visible_fraction=fraction,
            stripe_person_pixels=[8] * 16,
            stripe_visible_pixels=[upper] * 8 + [lower] * 8,
        )
        for name, fraction, upper, lower in (("a", 1.0, 8, 8), ("b", 0.5, 0, 8), ("c", 0.4, 8, 0))
    }
    visibility = np.array([[0.9, 0.3], [0.1, 0.2], [0.8, 0.5]])
    result = measure_stripe_visibility(visibility, list("abc"), truth)
    assert result["visibility_auc_per_stripe"] == [1, 0]
    assert result["visibility_calibration"]["expected_error"] > 0
    only = measure_stripe_visibility(visibility[:1], ["a"], truth)
    assert only["visibility_auc_per_stripe"] == [None, None] and only["visibility_auc"] == {}
    images = measure_image_visibility(visibility, list("abc"), truth)
    # means 0.6, 0.15, 0.65: "a" is above "b" and below "c"
    assert images["auc"] == 0.5
    assert images["rank_correlation"] == pytest.approx(-0.5)
    assert measure_image_visibility(visibility[:1], ["a"], truth) == {}
    assert measure_image_visibility(visibility[:2], ["a", "a"], truth) == {}
