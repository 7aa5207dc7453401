"""Rankings equal fast-reid's own; intervals and results files say what they should."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastreid.evaluation.rank import eval_market1501
from fastreid.utils.compute_dist import build_dist
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import tiny_cfg
from torch import nn

from occluded_reid.errors import UserError
from occluded_reid.evaluation import (
    Evaluator,
    distance_matrix,
    rank_queries,
    results_table,
    run_inference,
    write_results,
)
from occluded_reid.evaluation.occlusion import by_occlusion, visibility_auc
from occluded_reid.evaluation.outputs import Embedding
from occluded_reid.evaluation.ranking import Ranking
from occluded_reid.evaluation.results import with_intervals


def test_three_queries_by_hand():
    """Gallery at distances 0.1 ... 0.5; camera 9 is everybody's other camera.

    Query 0 (identity 1, camera 1): the image at 0.1 is of its own camera and ignored; positives
    stand at ranks 2 and 3 of [2, 1, 1, 3]: AP = (1/2 + 2/3) / 2, INP = 2/3.
    Query 1 (identity 3, camera 1): one positive at rank 5: AP = INP = 1/5.
    Query 2 (identity 4): none; left out.
    """
    distances = np.tile(np.array([0.1, 0.2, 0.3, 0.4, 0.5], np.float32), (3, 1))
    gallery_ids, gallery_cameras = np.array([1, 2, 1, 1, 3]), np.array([1, 9, 9, 9, 9])
    ids, cameras = np.array([1, 3, 4]), np.array([1, 1, 1])
    ranking = rank_queries(distances, ids, gallery_ids, cameras, gallery_cameras)
    assert ranking.query.tolist() == [0, 1]
    assert ranking.positives.tolist() == [2, 1]
    assert ranking.first_match.tolist() == [2, 5]
    np.testing.assert_allclose(ranking.average_precision, [(1 / 2 + 2 / 3) / 2, 1 / 5])
    np.testing.assert_allclose(ranking.inverse_negative_penalty, [2 / 3, 1 / 5])
    assert ranking.rank_k(2).tolist() == [1, 0]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_ranking_equals_fastreids_own_with_a_stable_order(seed, ties):
    random = np.random.default_rng(seed)
    queries, gallery = random.integers(1, 8), random.integers(20, 60)
    distances = random.random((queries, gallery)).astype(np.float32)
    if ties:
        distances = np.round(distances * 3) / 3
    labels = [
        random.integers(0, high, size)
        for size, high in ((queries, 5), (gallery, 5), (queries, 3), (gallery, 3))
    ]
    ranking = rank_queries(distances, *labels)
    # equal distances made different in the gallery's order: what a stable sort does
    order = np.argsort(np.argsort(distances, axis=1, kind="stable"), axis=1).astype(np.float64)
    try:
        cmc, precision, penalty = eval_market1501(order, *labels, max_rank=5)
    except AssertionError:
        assert len(ranking.query) == 0
        return
    np.testing.assert_allclose(ranking.average_precision, precision, atol=1e-12)
    np.testing.assert_allclose(ranking.inverse_negative_penalty, penalty, atol=1e-12)
    own_cmc = [ranking.rank_k(k + 1).mean() for k in range(len(cmc))]
    np.testing.assert_allclose(own_cmc, cmc, atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_distances_equal_fastreids(metric):
    query, gallery = torch.randn(5, 7), torch.randn(9, 7)
    own = distance_matrix(query, gallery, metric)
    np.testing.assert_allclose(own, build_dist(query, gallery, metric), atol=1e-5)


def test_dot_is_the_inner_product_and_not_the_cosine():
    query, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [3.0, 3.0]])
    assert distance_matrix(query, gallery, "dot").tolist() == [[-1, -3]]
    with pytest.raises(ValueError, match="unknown metric"):
        distance_matrix(query, gallery, "manhattan")


def ranking_of(precision: list[float]) -> Ranking:
    values = np.array(precision)
    count = len(values)
    first = np.where(values > 0.5, 1, 7)
    return Ranking(np.arange(count), np.ones(count, np.int64), first, values, values)


def test_intervals_hold_the_value_and_narrow_with_more_queries():
    few = with_intervals(ranking_of([0.2, 0.9, 0.4, 1.0] * 5))
    many = with_intervals(ranking_of([0.2, 0.9, 0.4, 1.0] * 500))
    for metrics in (few, many):
        assert metrics["mAP"]["value"] == pytest.approx(62.5)
        assert metrics["Rank-1"]["value"] == pytest.approx(50)
        assert metrics["Rank-5"]["value"] == metrics["Rank-1"]["value"]
        assert metrics["Rank-10"]["value"] == 100
        assert metrics["mAP"]["low"] < 62.5 < metrics["mAP"]["high"]
    widths = [metrics["mAP"]["high"] - metrics["mAP"]["low"] for metrics in (few, many)]
    # the normal approximation: 2 * 1.96 * 100 * standard deviation / sqrt(queries)
    deviation = np.std([0.2, 0.9, 0.4, 1.0])
    np.testing.assert_allclose(widths, 392 * deviation / np.sqrt([20, 2000]), rtol=0.12)


def test_intervals_of_a_constant_metric_have_no_width():
    assert with_intervals(ranking_of([1.0] * 8))["mAP"] == {"value": 100, "low": 100, "high": 100}


def test_metrics_by_occlusion():
    ranking = ranking_of([1.0, 0.4, 0.8])._replace(query=np.array([0, 2, 3]))
    truth = {
        name: SimpleNamespace(visible_fraction=visible, occlusion=kind)
        for name, visible, kind in (
            ("a", 1.0, "none"), ("b", 0.1, "horizontal"),
            ("c", 0.6, "horizontal"), ("d", 0.55, "pedestrian"),
        )
    }  # fmt: skip
    found = by_occlusion(ranking, np.array(["a", "b", "c", "d"]), truth)
    assert found["visible 0.9-1.0"] == {"queries": 1, "Rank-1": 100, "mAP": 100}
    assert found["visible 0.5-0.7"]["queries"] == 2
    assert found["visible 0.5-0.7"]["mAP"] == pytest.approx(60)
    assert found["horizontal"] == {"queries": 1, "Rank-1": 0, "mAP": 40}
    assert "visible 0.0-0.5" not in found  # its only query has no positive


def test_visibility_auc_against_the_truth_by_hand():
    """Two images of two stripes; the second stripe of "b" holds nobody and is not counted."""

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
    right = visibility_auc(np.array([[0.9, 0.2], [0.6, 0.0]]), paths, truth)
    assert right == {"all": 1.0, "horizontal": 1.0}  # "vertical" has visible stripes only
    half = visibility_auc(np.array([[0.9, 0.5], [0.4, 0.0]]), paths, truth)
    assert half == {"all": 0.5, "horizontal": 1.0}


def test_the_report_rates_a_models_visibility(tmp_path, features):
    values, identities, cameras = features
    truth = {
        str(number): SimpleNamespace(
            visible_fraction=0.5,
            occlusion="horizontal",
            stripe_person_pixels=[10] * 16,
            stripe_visible_pixels=[10] * 8 + [0] * 8,
        )
        for number in range(30)
    }
    evaluator = Evaluator(tiny_cfg(tmp_path / "run"), num_query=6, truth=truth)
    for batch in batches_of(values, identities, cameras, 7):
        seen = torch.tensor([[0.9, 0.1]]).repeat(len(batch["images"]), 1)
        evaluator.process(batch, Embedding(batch["images"], seen))
    found = evaluator.evaluate()
    assert found["visibility_auc"] == {"all": 1.0, "horizontal": 1.0}
    assert found["by_occlusion"]["horizontal"]["queries"] == 6


def batches_of(features, identities, cameras, size):
    for start in range(0, len(features), size):
        part = slice(start, start + size)
        yield {
            "images": features[part],
            "targets": identities[part],
            "camids": cameras[part],
            "index": torch.arange(len(features))[part],
            "img_paths": [str(number) for number in range(len(features))[part]],
        }


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    identities = torch.arange(6).repeat(5)
    cameras = torch.arange(5).repeat_interleave(6)
    features = torch.randn(6, 8, generator=generator)[identities]
    return features + 0.9 * torch.randn(30, 8, generator=generator), identities, cameras


def report(cfg, features, identities, cameras, size=7):
    evaluator = Evaluator(cfg, num_query=6)
    for batch in batches_of(features, identities, cameras, size):
        evaluator.process(batch, batch["images"])
    return evaluator.evaluate()


def test_batch_size_and_order_do_not_change_the_report(tmp_path, features):
    cfg = tiny_cfg(tmp_path / "run")
    expected = report(cfg, *features)
    assert expected["counts"]["gallery"] == 24 and 0 < expected["metrics"]["mAP"]["value"] < 100
    assert report(cfg, *features, size=30) == expected
    evaluator = Evaluator(cfg, num_query=6)
    for batch in reversed(list(batches_of(*features, 4))):
        evaluator.process(batch, batch["images"])
        evaluator.process(batch, batch["images"])  # an image that two ranks read counts once
    assert evaluator.evaluate() == expected


@pytest.mark.parametrize("option", ["AQE", "RERANK", "ROC"])
def test_fastreids_options_work_and_refuse_the_inner_product(tmp_path, features, option):
    plain = report(tiny_cfg(tmp_path / "run"), *features)
    on = ("TEST." + option + ".ENABLED", True)
    rerank = ("TEST.RERANK.K1", 6, "TEST.RERANK.K2", 2)
    changed = report(tiny_cfg(tmp_path / "run", *on, *rerank), *features)
    if option == "ROC":
        assert all(0 <= rate <= 1 for rate in changed.pop("roc").values())
        assert changed == plain
        return
    assert changed["metrics"] != plain["metrics"]
    with pytest.raises(UserError, match="cannot be used with TEST.METRIC dot"):
        report(tiny_cfg(tmp_path / "run", *on, "TEST.METRIC", "dot"), *features)


def test_broken_features_and_sets_without_positives_are_refused(tmp_path, features):
    cfg = tiny_cfg(tmp_path / "run")
    values, identities, cameras = features
    with pytest.raises(UserError, match="no query has an image of its identity"):
        report(cfg, values, torch.arange(30), cameras)
    values[3, 0] = float("nan")
    with pytest.raises(UserError, match="features of 1 images are not finite"):
        report(cfg, values, identities, cameras)


class FirstColumn(nn.Module):
    """Features that tell an image from its mirror image; notes the mode it ran in."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []

    def forward(self, batch):
        self.modes.append(self.training)
        return batch["images"][..., 0].flatten(1)


def test_flip_averages_both_views_and_leaves_the_batch_as_it_was(tmp_path):
    images = torch.rand(4, 3, 5, 6)
    batch = {"images": images.clone(), "targets": torch.arange(4), "camids": torch.arange(4)}
    seen = []
    evaluator = SimpleNamespace(
        reset=seen.clear, process=lambda _, out: seen.append(out.features), evaluate=dict
    )
    model = FirstColumn().train()
    run_inference(model, [batch], evaluator, name="test", flip=True)
    expected = (images[..., 0] + images[..., -1]).flatten(1) / 2
    torch.testing.assert_close(seen[0], expected)
    torch.testing.assert_close(batch["images"], images, rtol=0, atol=0)
    assert model.modes == [False, False] and model.training


def test_the_mode_is_restored_after_an_error():
    model = FirstColumn().train()
    with pytest.raises(KeyError):
        run_inference(model, [{}], SimpleNamespace(reset=list), name="test")
    assert model.training


def test_results_file_says_what_was_measured(tmp_path, features):
    folder = tmp_path / "run"
    folder.mkdir()
    cfg = tiny_cfg(folder)
    reports = {"Name:protocol": report(cfg, *features)}
    model = nn.Linear(2, 2)
    path = write_results(cfg, model, reports, seconds=1.234, epoch=5)
    content = json.loads(path.read_text())
    assert content["data_sets"] == reports
    assert content["epoch"] == 5 and content["seed"] == 7 and content["wall_time_s"] == 1.23
    assert {"torch", "fastreid", "python", "numpy"} <= content["versions"].keys()
    assert content["machine"]["device"] == "cpu" and content["machine"]["cores"] >= 1
    with torch.no_grad():
        model.bias += 1
    again = json.loads(write_results(cfg, model, reports, seconds=1, epoch=5).read_text())
    assert again["weights_sha256"] != content["weights_sha256"]
    table = results_table(reports)
    assert "Name:protocol" in table and "[" in table
