"""From batches to the report and its file: options, duplicates, visibility, several ranks."""

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
from occluded_reid.evaluation.ranking import rank_queries
from occluded_reid.evaluation.results import format_results, unpack_queries, write_results
from occluded_reid.modeling.outputs import Embedding
from occluded_reid.utils.errors import UserError


def test_landmarks_are_not_evaluated_as_stripes(tmp_path, features):
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
        for batch in make_batches(values, identities, cameras, 7):
            visibility = (batch["index"] / 30)[:, None].repeat(1, parts)
            evaluator.process(batch, Embedding(batch["images"], visibility, stripes))
        result = evaluator.evaluate()
        assert result["image_visibility"] == {"rank_correlation": pytest.approx(1)}
        assert "visibility_auc" not in result and "visibility_calibration" not in result


def test_report_rates_the_models_visibility(tmp_path, features):
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
    for batch in make_batches(values, identities, cameras, 7):
        visibility = torch.tensor([[0.9, 0.1]]).repeat(len(batch["images"]), 1)
        evaluator.process(batch, Embedding(batch["images"], visibility))
    result = evaluator.evaluate()
    assert result["visibility_auc"] == {"all": 1.0, "horizontal": 1.0}
    assert result["visibility_auc_per_stripe"] == [None, None]  # each always or never visible
    assert result["visibility_calibration"]["expected_error"] == pytest.approx(0.1)
    assert result["image_visibility"] == {}
    assert result["by_occlusion"]["horizontal"]["queries"] == 6


def make_batches(features, identities, cameras, size):
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


def report(cfg, features, identities, cameras, size=7, digests=None):
    evaluator = Evaluator(cfg, num_query=6)
    for batch in make_batches(features, identities, cameras, size):
        if digests is not None:
            batch["digest"] = digests[batch["index"]]
        evaluator.process(batch, batch["images"])
    return evaluator.evaluate()


def test_batch_size_and_order_do_not_change_the_report(tmp_path, features):
    cfg = tiny_cfg(tmp_path / "run")
    expected = report(cfg, *features)
    assert expected["counts"]["gallery"] == 24 and 0 < expected["metrics"]["mAP"]["value"] < 100
    assert report(cfg, *features, size=30) == expected
    evaluator = Evaluator(cfg, num_query=6)
    for batch in reversed(list(make_batches(*features, 4))):
        evaluator.process(batch, batch["images"])
        evaluator.process(batch, batch["images"])  # an image that two ranks read counts once
    assert evaluator.evaluate() == expected


def options(*names):
    """Overrides that switch ``TEST.<name>`` on, with neighborhoods for thirty images."""
    on = [word for name in names for word in (f"TEST.{name}.ENABLED", True)]
    return [*on, "TEST.RERANK.K1", 6, "TEST.RERANK.K2", 2, "TEST.AQE.QE_K", 3]


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_expansion_and_reranking_work_with_every_metric(tmp_path, features, metric):
    by = ("TEST.METRIC", metric)
    reports = [
        report(tiny_cfg(tmp_path / "run", *by, *options(*names)), *features)
        for names in ((), ("AQE",), ("RERANK",), ("AQE", "RERANK"))
    ]
    used = [(each["query_expansion"], each["reranking"]) for each in reports]
    assert used == [(False, False), (True, False), (False, True), (True, True)]
    scores = [each["per_query"]["average_precision"] for each in reports]
    assert all(one != other for one, other in itertools.combinations(scores, 2))
    assert min(each["metrics"]["mAP"]["value"] for each in reports) > 40  # random: about 20


def test_pairs_of_cameras_are_ranked_one_by_one(tmp_path, features):
    values, identities, cameras = features[0], *(each.numpy() for each in features[1:])
    pairs = report(tiny_cfg(tmp_path / "run"), *features)["by_cameras"]
    unit = torch.nn.functional.normalize(values, dim=1).numpy()
    assert list(pairs) == ["0 to 1", "0 to 2", "0 to 3", "0 to 4"]
    for other, pair in enumerate(pairs.values(), start=1):
        columns = np.flatnonzero(cameras == other)
        labels = identities[:6], identities[columns], cameras[:6], cameras[columns]
        metrics = rank_queries(1 - unit[:6] @ unit[columns].T, *labels).compute_metrics()
        means = {name: pytest.approx(metrics[name].mean()) for name in ("Rank-1", "mAP")}
        assert pair == {"queries": 6, **means}
    cfg = tiny_cfg(tmp_path / "other", *options("RERANK"))
    assert report(cfg, *features)["by_cameras"] == {}


def test_true_positive_rates_change_nothing_else(tmp_path, features):
    result = report(tiny_cfg(tmp_path / "run", *options("ROC")), *features)
    assert all(0 <= rate <= 1 for rate in result.pop("roc").values())
    assert result == report(tiny_cfg(tmp_path / "run"), *features)


@pytest.mark.parametrize("option", ["AQE", "RERANK"])
def test_a_querys_duplicate_is_not_its_neighbor(tmp_path, features, option):
    """Each query is also in the gallery, as in Occluded-Duke."""
    cfg = tiny_cfg(tmp_path / "run", *options(option))
    doubled = [torch.cat([each, each[:6]]) for each in features]
    known = torch.cat([torch.arange(30), torch.arange(6)])

    def measure(digests):
        result = report(cfg, *doubled, digests=digests)
        count = result["counts"]["queries_with_a_copy_in_the_gallery"]
        return count, result["per_query"]["average_precision"]

    count, precision = measure(known)
    assert count == 6
    counted_twice = measure(torch.arange(36))
    assert counted_twice[0] == 0 and counted_twice[1] != precision


@pytest.mark.parametrize(("identity", "camera"), [(0, 9), (77, 0)])
def test_a_querys_own_image_is_never_scored(tmp_path, features, caplog, identity, camera):
    """Under another camera it would be a hit at rank 1, under another identity a miss."""
    cfg = tiny_cfg(tmp_path / "run")
    values = torch.cat([features[0], features[0][:1]])
    added = torch.tensor([[identity], [camera]])
    labels = [torch.cat(each) for each in zip(features[1:], added, strict=True)]
    expected, scored, result = (
        report(cfg, *given, digests=digests)["per_query"]["average_precision"][0]
        for given, digests in (
            (features, None),
            ((values, *labels), None),
            ((values, *labels), torch.tensor([*range(30), 0])),
        )
    )
    assert result == expected != scored
    assert "1 queries are in the gallery too, under another camera or identity" in caplog.text


def test_a_query_whose_only_match_is_itself_is_not_scored(tmp_path, features):
    values, identities, _ = (torch.cat([each[:6], each[:6]]) for each in features)
    cameras = torch.arange(2).repeat_interleave(6)
    cfg = tiny_cfg(tmp_path / "run")
    assert report(cfg, values, identities, cameras)["metrics"]["Rank-1"]["value"] == 100
    with pytest.raises(UserError, match="no query has another image of its identity"):
        report(cfg, values, identities, cameras, digests=torch.arange(6).repeat(2))


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
@pytest.mark.parametrize("option", [(), ("AQE",), ("RERANK",)])
def test_features_of_any_size_give_the_same_numbers(tmp_path, features, metric, option):
    """Those of a diverged run are finite, but their squares overflow float32, or vanish."""
    cfg = tiny_cfg(tmp_path / "run", "TEST.METRIC", metric, *options(*option))
    values, *labels = features
    values = values / values.abs().max()  # halving and doubling are exact
    expected = report(cfg, values, *labels)["metrics"]
    for exponent in (120, 80, -80):
        assert report(cfg, values * 2.0**exponent, *labels)["metrics"] == expected


def test_rows_of_any_size_have_the_same_cosines(tmp_path, features):
    values, *labels = features
    cfg = tiny_cfg(tmp_path / "run")
    sizes = 10.0 ** torch.linspace(-30, 30, len(values))[:, None]
    assert report(cfg, values * sizes, *labels)["metrics"] == report(cfg, *features)["metrics"]


@pytest.mark.parametrize("noise", [0, 1e-6])
def test_a_collapsed_model_gains_nothing_from_the_order_of_the_gallery(
    tmp_path, features, caplog, noise
):
    """Each query's match stands first in the gallery, or last."""
    cfg = tiny_cfg(tmp_path / "run")
    values = torch.ones(30, 8) + noise * features[0]
    numbers = torch.arange(6).repeat(5)
    result = report(cfg, values, numbers, features[2])
    assert "the features of all images are the same" in caplog.text
    if not noise:
        assert result["metrics"]["Rank-1"]["value"] == 0
        assert result["per_query"]["first_match"] == [21] * 6  # 20 of other identities before
        assert result["ties"] == "against"
        by_order = tiny_cfg(tmp_path / "run", "TEST.TIES", "gallery_order")
        old = report(by_order, values, numbers, features[2])
        assert old["ties"] == "gallery_order" and old["metrics"]["Rank-1"]["value"] > 0
    caplog.clear()
    report(cfg, *features)
    assert not caplog.text


def test_report_names_each_query_and_the_worst(tmp_path, features):
    result = report(tiny_cfg(tmp_path / "run"), *features)
    per_query, worst = result["per_query"], result["worst_queries"]
    assert per_query["names"] == [str(number) for number in range(6)]
    assert np.mean(per_query["average_precision"]) * 100 == pytest.approx(
        result["metrics"]["mAP"]["value"]
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
    """However images are split: a rank may have none, and both may read the same ones."""
    cfg = tiny_cfg(tmp_path / "run")
    expected = report(cfg, *features)
    first, second = shares

    def work(rank):
        chosen = range(first) if rank == 0 else range(30 - second, 30)
        evaluator = Evaluator(cfg, num_query=6)
        for batch in make_batches(*features, 1):
            if int(batch["index"]) in chosen:
                evaluator.process(batch, batch["images"])
        result = evaluator.evaluate()
        assert evaluator.gather() is None or rank == 0  # a second time
        assert result == (expected if rank == 0 else {})

    on_ranks(2, work)


@pytest.mark.distributed
def test_ranks_send_rows_without_pickling_them(monkeypatch):
    """Features may be too large to be pickled in one piece."""

    def work(rank):
        sent = []
        gather = comm.all_gather
        monkeypatch.setattr(comm, "all_gather", lambda data: sent.append(data) or gather(data))
        rows = torch.full((3 - rank, 1000), float(rank))
        result = gather_rows(rows)
        assert len(pickle.dumps(sent)) < 200
        if rank == 0:
            assert result[:, 0].tolist() == [0, 0, 0, 1, 1]

    on_ranks(2, work)


def test_non_finite_features_and_sets_without_positives_are_refused(tmp_path, features):
    cfg = tiny_cfg(tmp_path / "run")
    values, identities, cameras = features
    with pytest.raises(UserError, match="no query has another image of its identity"):
        report(cfg, values, torch.arange(30), cameras)
    values[3, 0] = float("nan")
    with pytest.raises(UserError, match="features of 1 images are not finite"):
        report(cfg, values, identities, cameras)


def test_results_file_holds_the_report_and_its_origin(tmp_path, features):
    folder = tmp_path / "run"
    folder.mkdir()
    cfg = tiny_cfg(folder)
    reports = {"Name:protocol": report(cfg, *features)}
    model = nn.Linear(2, 2)
    path = write_results(cfg, model, reports, seconds=1.234, epoch=5)
    content = json.loads(path.read_text())
    summary = {key: value for key, value in reports["Name:protocol"].items() if key != "per_query"}
    stored = unpack_queries(content["data_sets"]["Name:protocol"]).ranking
    assert content["data_sets"]["Name:protocol"].pop("per_query").keys() == {
        "names_sha256", "values"
    }  # fmt: skip
    assert content["data_sets"] == {"Name:protocol": summary}
    queries = reports["Name:protocol"]["per_query"]  # the argument stays unchanged
    assert queries["names"] == sorted(queries["names"])  # their order in the file
    for field in stored._fields:
        assert getattr(stored, field).tolist() == pytest.approx(queries[field], abs=1e-6)
    assert content["epoch"] == 5 and content["seed"] == 7 and content["wall_time_s"] == 1.23
    assert {"torch", "fastreid", "python", "numpy"} <= content["versions"].keys()
    assert content["machine"]["device"] == "cpu" and content["machine"]["cores"] >= 1
    with torch.no_grad():
        model.bias += 1
    again = json.loads(write_results(cfg, model, reports, seconds=1, epoch=5).read_text())
    assert again["weights_sha256"] != content["weights_sha256"]
    table = format_results(reports)
    assert "Name:protocol" in table and "[" in table
