"""From batches to the report: intervals, occlusion, options, several ranks, results files."""

from __future__ import annotations

import itertools
import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastreid.utils import comm
from ranks import on_ranks
from runs import tiny_cfg
from torch import nn

from occluded_reid.evaluation.evaluator import Evaluator
from occluded_reid.evaluation.gather import gather_rows
from occluded_reid.evaluation.inference import run_inference
from occluded_reid.evaluation.occlusion_metrics import (
    measure_by_occlusion,
    measure_calibration,
    measure_image_visibility,
    measure_stripe_visibility,
    measure_visibility_auc,
)
from occluded_reid.evaluation.ranking import Ranking
from occluded_reid.evaluation.results import (
    format_results,
    read_per_query,
    strip_common_folder,
    summarize_ranking,
    write_results,
)
from occluded_reid.modeling.outputs import Embedding, embed_batch
from occluded_reid.utils.errors import UserError


def ranking_of(precision: list[float]) -> Ranking:
    values = np.array(precision)
    count = len(values)
    first = np.where(values > 0.5, 1, 7)
    return Ranking(np.arange(count), np.ones(count, np.int64), first, values, values)


def test_intervals_hold_the_value_and_narrow_with_more_queries():
    few = summarize_ranking(ranking_of([0.2, 0.9, 0.4, 1.0] * 5))
    many = summarize_ranking(ranking_of([0.2, 0.9, 0.4, 1.0] * 500))
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
    assert summarize_ranking(ranking_of([1.0] * 8))["mAP"] == {
        "value": 100,
        "low": 100,
        "high": 100,
    }


def test_metrics_by_occlusion():
    ranking = ranking_of([1.0, 0.4, 0.8])._replace(query=np.array([0, 2, 3]))
    truth = {
        name: SimpleNamespace(visible_fraction=visible, occlusion=kind)
        for name, visible, kind in (
            ("a", 1.0, "none"), ("b", 0.1, "horizontal"),
            ("c", 0.6, "horizontal"), ("d", 0.55, "pedestrian"),
        )
    }  # fmt: skip
    found = measure_by_occlusion(ranking, np.array(["a", "b", "c", "d"]), truth)
    sure = {"Rank-1": [100, 100], "mAP": [100, 100]}
    assert found["visible 0.9-1.0"] == {
        "queries": 1, "Rank-1": 100, "mAP": 100, "intervals": sure,
    }  # fmt: skip
    assert found["visible 0.5-0.7"]["queries"] == 2
    assert found["visible 0.5-0.7"]["mAP"] == pytest.approx(60)
    low, high = found["visible 0.5-0.7"]["intervals"]["mAP"]
    assert (low, high) == pytest.approx((40, 80))  # of two queries
    assert found["horizontal"]["Rank-1"] == 0 and found["horizontal"]["mAP"] == pytest.approx(40)
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
    right = measure_visibility_auc(np.array([[0.9, 0.2], [0.6, 0.0]]), paths, truth)
    assert right == {"all": 1.0, "horizontal": 1.0}  # "vertical" has visible stripes only
    half = measure_visibility_auc(np.array([[0.9, 0.5], [0.4, 0.0]]), paths, truth)
    assert half == {"all": 0.5, "horizontal": 1.0}


def test_calibration_by_hand():
    """Two bins: 0.05 and 0.05 of which one is visible, 1.0 and 0.9 that are both visible."""
    found = measure_calibration(
        np.array([0.05, 0.05, 1.0, 0.9]), np.array([True, False, True, True])
    )
    first, last = found["bins"]
    assert first == {
        "low": 0, "high": 0.1, "stripes": 2, "predicted": pytest.approx(0.05), "visible": 0.5,
    }  # fmt: skip
    assert (last["low"], last["high"], last["stripes"]) == (0.9, 1, 2)
    assert found["expected_error"] == pytest.approx((0.45 + 0.05) / 2)
    assert measure_calibration(np.empty(0), np.empty(0, bool)) == {"expected_error": 0, "bins": []}


def test_a_calibrated_prediction_has_no_error():
    random = np.random.default_rng(0)
    predicted = random.random(200_000)
    seen = random.random(200_000) < predicted
    assert measure_calibration(predicted, seen)["expected_error"] < 0.01
    assert measure_calibration(predicted, ~seen)["expected_error"] > 0.4


def test_visibility_of_each_stripe_and_of_whole_images():
    """The first stripe is always told rightly, the second always wrongly."""
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
    found = measure_stripe_visibility(visibility, list("abc"), truth)
    assert found["visibility_auc_per_stripe"] == [1, 0]
    assert found["visibility_calibration"]["expected_error"] > 0
    only = measure_stripe_visibility(visibility[:1], ["a"], truth)
    assert only["visibility_auc_per_stripe"] == [None, None] and only["visibility_auc"] == {}
    images = measure_image_visibility(visibility, list("abc"), truth)
    # means 0.6, 0.15, 0.65: "a" is above "b" and below "c"
    assert images["auc"] == 0.5
    assert images["rank_correlation"] == pytest.approx(-0.5)
    assert measure_image_visibility(visibility[:1], ["a"], truth) == {}
    assert measure_image_visibility(visibility[:2], ["a", "a"], truth) == {}


def test_landmarks_are_not_taken_for_stripes(tmp_path, features):
    values, identities, cameras = features
    truth = {
        str(number): SimpleNamespace(
            visible_fraction=number / 30, occlusion="horizontal",
            stripe_person_pixels=[1] * 16, stripe_visible_pixels=[number % 2] * 16,
        )
        for number in range(30)
    }  # fmt: skip
    for parts, stripes in ((6, True), (4, False)):
        evaluator = Evaluator(tiny_cfg(tmp_path / "run"), num_query=6, truth=truth)
        for batch in batches_of(values, identities, cameras, 7):
            seen = (batch["index"] / 30)[:, None].repeat(1, parts)
            evaluator.process(batch, Embedding(batch["images"], seen, stripes))
        found = evaluator.evaluate()
        assert found["image_visibility"] == {"rank_correlation": pytest.approx(1)}
        assert "visibility_auc" not in found and "visibility_calibration" not in found


def test_the_mean_of_an_image_and_its_mirror_image_keeps_what_the_parts_are():
    images = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)

    def left_column(batch):
        column = batch["images"][..., 0].flatten(1)
        return Embedding(column, column / 10, stripes=False)

    for flip, value in ((False, 1), (True, 2)):
        features, visibility, stripes = embed_batch(left_column, {"images": images}, flip=flip)
        assert features.item() == value and visibility.item() == pytest.approx(value / 10)
        assert not stripes


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
    assert found["visibility_auc_per_stripe"] == [None, None]  # each always or never visible
    assert found["visibility_calibration"]["expected_error"] == pytest.approx(0.1)
    assert found["image_visibility"] == {}
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


def options(*names):
    """Overrides that switch ``TEST.<name>`` on, with neighbourhoods for thirty images."""
    on = [word for name in names for word in (f"TEST.{name}.ENABLED", True)]
    return [*on, "TEST.RERANK.K1", 6, "TEST.RERANK.K2", 2, "TEST.AQE.QE_K", 3]


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_expansion_and_reranking_work_by_every_metric(tmp_path, features, metric):
    by = ("TEST.METRIC", metric)
    reports = [
        report(tiny_cfg(tmp_path / "run", *by, *options(*names)), *features)
        for names in ((), ("AQE",), ("RERANK",), ("AQE", "RERANK"))
    ]
    used = [(each["query_expansion"], each["reranking"]) for each in reports]
    assert used == [(False, False), (True, False), (False, True), (True, True)]
    scores = [each["per_query"]["average_precision"] for each in reports]
    assert all(one != other for one, other in itertools.combinations(scores, 2))
    assert min(each["metrics"]["mAP"]["value"] for each in reports) > 40  # chance: about 20


def test_true_positive_rates_change_nothing_else(tmp_path, features):
    found = report(tiny_cfg(tmp_path / "run", *options("ROC")), *features)
    assert all(0 <= rate <= 1 for rate in found.pop("roc").values())
    assert found == report(tiny_cfg(tmp_path / "run"), *features)


@pytest.mark.parametrize("option", ["AQE", "RERANK"])
def test_a_querys_duplicate_is_not_its_neighbor(tmp_path, features, option):
    """Each query also stands in the gallery, as Occluded-Duke's do, under its name or another."""
    cfg = tiny_cfg(tmp_path / "run", *options(option))
    doubled = [torch.cat([each, each[:6]]) for each in features]
    paths = [f"query/{n}.jpg" for n in range(6)] + [f"gallery/{n}.jpg" for n in range(6, 30)]

    def measure(copied, duplicates=None):
        evaluator = Evaluator(cfg, num_query=6, duplicates=duplicates)
        for batch in batches_of(*doubled, 8):
            batch["img_paths"] = [(paths + copied)[n] for n in batch["index"]]
            evaluator.process(batch, batch["images"])
        found = evaluator.evaluate()
        count = found["counts"]["queries_with_a_copy_in_the_gallery"]
        return count, found["per_query"]["average_precision"]

    same_names = [f"gallery/{n}.jpg" for n in range(6)]
    other_names = [f"gallery/other{n}.jpg" for n in range(6)]
    by_name = measure(same_names)
    assert by_name[0] == 6
    assert measure(other_names, dict(zip(paths[:6], other_names, strict=True))) == by_name
    unmasked = measure(other_names)
    assert unmasked[0] == 0 and unmasked[1] != by_name[1]
    assert measure(same_names, {}) == unmasked


def test_report_names_each_query_and_the_worst(tmp_path, features):
    found = report(tiny_cfg(tmp_path / "run"), *features)
    per_query, worst = found["per_query"], found["worst_queries"]
    assert per_query["names"] == [str(number) for number in range(6)]
    assert np.mean(per_query["average_precision"]) * 100 == pytest.approx(
        found["metrics"]["mAP"]["value"]
    )
    assert [each["AP"] for each in worst] == sorted(each["AP"] for each in worst)
    assert len(worst) == 6 and worst[0]["AP"] < worst[-1]["AP"]
    for each in worst:
        assert each["name"] == str(each["query"])
        assert each["AP"] == 100 * per_query["average_precision"][each["query"]]
        assert each["first_match"] == per_query["first_match"][each["query"]]


@pytest.mark.distributed
@pytest.mark.parametrize("shares", [(30, 0), (0, 30), (13, 20)])
def test_two_ranks_report_what_one_does(tmp_path, features, shares):
    """However the images are shared: one rank may have none, some may be read by both."""
    cfg = tiny_cfg(tmp_path / "run")
    expected = report(cfg, *features)
    first, second = shares

    def work(rank):
        chosen = range(first) if rank == 0 else range(30 - second, 30)
        evaluator = Evaluator(cfg, num_query=6)
        for batch in batches_of(*features, 1):
            if int(batch["index"]) in chosen:
                evaluator.process(batch, batch["images"])
        found = evaluator.evaluate()
        assert evaluator.gather() is None or rank == 0  # asked for again
        assert found == (expected if rank == 0 else {})

    on_ranks(2, work)


@pytest.mark.distributed
def test_ranks_send_their_rows_without_pickling_them(monkeypatch):
    """Features may be larger than what can be pickled in one piece."""

    def work(rank):
        sent = []
        gather = comm.all_gather
        monkeypatch.setattr(comm, "all_gather", lambda data: sent.append(data) or gather(data))
        rows = torch.full((3 - rank, 1000), float(rank))
        found = gather_rows(rows)
        assert len(pickle.dumps(sent)) < 200
        if rank == 0:
            assert found[:, 0].tolist() == [0, 0, 0, 1, 1]

    on_ranks(2, work)


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
    model._compiled_call_impl = lambda *_: 1 / 0  # MODEL.COMPILE is for training
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
    kept = {key: value for key, value in reports["Name:protocol"].items() if key != "per_query"}
    assert content["data_sets"] == {"Name:protocol": kept}
    assert "per_query" in reports["Name:protocol"]  # what was given is not changed
    stored = read_per_query(folder / "per_query.npz", content["per_query"]["sha256"])
    names, ranking = stored["Name:protocol"]
    for field, values in reports["Name:protocol"]["per_query"].items():
        assert (names if field == "names" else getattr(ranking, field).tolist()) == values
    assert content["epoch"] == 5 and content["seed"] == 7 and content["wall_time_s"] == 1.23
    assert {"torch", "fastreid", "python", "numpy"} <= content["versions"].keys()
    assert content["machine"]["device"] == "cpu" and content["machine"]["cores"] >= 1
    with torch.no_grad():
        model.bias += 1
    again = json.loads(write_results(cfg, model, reports, seconds=1, epoch=5).read_text())
    assert again["weights_sha256"] != content["weights_sha256"]
    table = format_results(reports)
    assert "Name:protocol" in table and "[" in table


def test_names_are_the_same_on_every_machine():
    for root in ("/data/2024 reid/Market", "relative", "."):
        paths = [f"{root}/query/1/0001_c1.jpg", f"{root}/query/2/0001_c1.jpg"]
        assert strip_common_folder(np.array(paths)) == ["1/0001_c1.jpg", "2/0001_c1.jpg"]
    assert strip_common_folder(np.array(["/data/query/0001_c1.jpg"])) == ["0001_c1.jpg"]
