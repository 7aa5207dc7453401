"""Results: intervals, names, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from occluded_reid.evaluation.ranking import Ranking
from occluded_reid.evaluation.results import strip_common_folder, summarize_ranking


def make_ranking(precision: list[float]) -> Ranking:
    values = np.array(precision)
    count = len(values)
    first = np.where(values > 0.5, 1, 7)
    return Ranking(np.arange(count), np.ones(count, np.int64), first, values, values)


def test_intervals_contain_the_value_and_narrow_with_more_queries():
    few = summarize_ranking(make_ranking([0.2, 0.9, 0.4, 1.0] * 5))
    many = summarize_ranking(make_ranking([0.2, 0.9, 0.4, 1.0] * 500))
    for metrics in (few, many):
        assert metrics["mAP"]["value"] == pytest.approx(62.5)
        assert metrics["Rank-1"]["value"] == pytest.approx(50)
        assert metrics["Rank-5"]["value"] == metrics["Rank-1"]["value"]
        assert metrics["Rank-10"]["value"] == 100
        assert metrics["mAP"]["low"] < 62.5 < metrics["mAP"]["high"]
    widths = [metrics["mAP"]["high"] - metrics["mAP"]["low"] for metrics in (few, many)]
    # normal approximation: 2 * 1.96 * 100 * standard deviation / sqrt(queries)
    deviation = np.std([0.2, 0.9, 0.4, 1.0])
    np.testing.assert_allclose(widths, 392 * deviation / np.sqrt([20, 2000]), rtol=0.12)


def test_intervals_of_a_constant_metric_have_no_width():
    metrics = summarize_ranking(make_ranking([1.0] * 8))
    assert metrics["mAP"] == {"value": 100, "low": 100, "high": 100}


def test_names_are_the_same_on_every_machine():
    for root in ("/data/2024 reid/Market", "relative", "."):
        paths = [f"{root}/query/1/0001_c1.jpg", f"{root}/query/2/0001_c1.jpg"]
        assert strip_common_folder(np.array(paths)) == ["1/0001_c1.jpg", "2/0001_c1.jpg"]
    assert strip_common_folder(np.array(["/data/query/0001_c1.jpg"])) == ["0001_c1.jpg"]


@pytest.mark.parametrize("module", ["results", "comparison"])
def test_reading_results_imports_numpy_alone(module):
    heavy = {"torch", "fastreid", "scipy", "sklearn", "faiss"}
    script = (
        f"import sys, occluded_reid.evaluation.{module}; "
        f"assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
