"""Rankings equal fast-reid's on every query, for any size of tiles."""

from __future__ import annotations

import importlib.util
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from fastreid.evaluation.rank import eval_market1501
from hypothesis import given, settings
from hypothesis import strategies as st

from occluded_reid.evaluation import distances as module
from occluded_reid.evaluation.distances import FeatureDistances
from occluded_reid.evaluation.ranking import rank_queries
from occluded_reid.modeling.similarity import VECTOR_METRICS
from occluded_reid.utils.errors import UserError


def test_three_queries_by_hand():
    """Gallery at distances 0.1 ... 0.5; camera 9 is everybody's other camera.

    Query 0 (identity 1, camera 1): the image at 0.1 is of its own camera and ignored; positives
    have ranks 2 and 3 of [2, 1, 1, 3]: AP = (1/2 + 2/3) / 2, INP = 2/3.
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


def test_an_empty_gallery_and_no_queries():
    nothing, one = np.empty(0, np.int64), np.zeros(1, np.int64)
    assert len(rank_queries(np.empty((1, 0)), one, nothing, one, nothing).query) == 0
    assert len(rank_queries(np.empty((0, 1)), nothing, one, nothing, one).query) == 0


def draw_distances(seed, ties):
    """Return distances (Q, G), and identities and cameras of queries and gallery."""
    rng = np.random.default_rng(seed)
    queries, gallery = rng.integers(1, 8), rng.integers(20, 60)
    distances = rng.random((queries, gallery)).astype(np.float32)
    if ties:
        distances = np.round(distances * 3) / 3
    sizes = ((queries, 5), (gallery, 5), (queries, 3), (gallery, 3))
    return distances, [rng.integers(0, high, size) for size, high in sizes]


def rank_in_a_loop(distances, labels, copies):
    """Yield query, ranks of its positives: a positive stands behind all negatives at its distance.

    Written from the rules of the module, image by image.
    """
    for query, (identity, camera) in enumerate(zip(labels[0], labels[2], strict=True)):
        kept = [
            (distances[query, image], bool(labels[1][image] == identity))
            for image in range(distances.shape[1])
            if image not in copies.get(query, [])
            and not (labels[1][image] == identity and labels[3][image] == camera)
        ]
        kept.sort()  # False before True
        ranks = [rank for rank, (_, positive) in enumerate(kept, start=1) if positive]
        if ranks:
            yield query, ranks


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_ties_count_against_the_model_and_copies_not_at_all(seed, ties):
    distances, labels = draw_distances(seed, ties)
    rng = np.random.default_rng(seed)
    copies = {
        query: rng.choice(distances.shape[1], rng.integers(1, 5), replace=False)
        for query in np.flatnonzero(rng.random(len(distances)) < 0.5).tolist()
    }
    expected = list(rank_in_a_loop(distances, labels, copies))
    ranking = rank_queries(distances, *labels, copies=copies)
    assert ranking.query.tolist() == [query for query, _ in expected]
    assert ranking.positives.tolist() == [len(ranks) for _, ranks in expected]
    assert ranking.first_match.tolist() == [ranks[0] for _, ranks in expected]
    precision = [
        sum(hits / rank for hits, rank in enumerate(ranks, start=1)) / len(ranks)
        for _, ranks in expected
    ]
    np.testing.assert_allclose(ranking.average_precision, precision, atol=1e-12)
    penalty = [len(ranks) / ranks[-1] for _, ranks in expected]
    np.testing.assert_allclose(ranking.inverse_negative_penalty, penalty, atol=1e-12)
    if not ties:  # the rule changes nothing
        same = rank_queries(distances, *labels, copies=copies, ties="gallery_order")
        np.testing.assert_array_equal(same.average_precision, ranking.average_precision)


def load_independent_evaluator(monkeypatch):
    """Load the metrics of the package ``reid``; they need NumPy only, the package much more."""
    package = importlib.util.find_spec("reid")
    if package is None:
        pytest.skip("needs another evaluator: pip install --no-deps reid==0.1.0rc1")
    file = Path(package.submodule_search_locations[0], "eval", "metrics.py")
    spec = importlib.util.spec_from_file_location("reid_metrics", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module._compute_reid_metrics


@pytest.mark.extras
def test_metrics_equal_those_of_an_independent_evaluator(monkeypatch):
    """Of distances without ties, for which its rule is none: whatever the sort gives."""
    evaluate = load_independent_evaluator(monkeypatch)
    for seed in range(200):
        distances, labels = draw_distances(seed, ties=False)
        rng = np.random.default_rng(seed)
        may_count = rng.random(distances.shape) > 0.1
        copies = {q: np.flatnonzero(~row) for q, row in enumerate(may_count)}
        theirs = evaluate(distances, *labels, candidate_mask=may_count)
        ranking = rank_queries(distances, *labels, copies=copies)
        assert len(ranking.query) == theirs.num_queries
        if theirs.num_queries:
            ours = {name: values.mean() for name, values in ranking.compute_metrics().items()}
            names = {"Rank-1": "rank1", "Rank-5": "rank5", "Rank-10": "rank10", "mINP": "minp"}
            for name, theirs_name in {**names, "mAP": "mean_average_precision"}.items():
                assert ours[name] == pytest.approx(getattr(theirs, theirs_name), abs=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_distances_that_are_not_finite_are_refused(value):
    labels = np.array([1]), np.array([1, 2, 2, 1]), np.array([1]), np.array([2, 2, 2, 1])
    for image in range(3):
        distances = np.array([[0.1, 0.2, 0.3, 0.4]])
        distances[0, image] = value
        with pytest.raises(UserError, match="distances are not finite"):
            rank_queries(distances, *labels)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([2**23, 60, 7]))
def test_ranking_equals_fastreids_with_a_stable_order(seed, ties, tile):
    distances, labels = draw_distances(seed, ties)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TILE", tile)
        patch.setattr(module, "MIN_TILE_ROWS", 3)
        ranking = rank_queries(distances, *labels, ties="gallery_order")
    # a stable sort breaks ties by the order of the gallery
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


class RecordingDistances(FeatureDistances):
    """Records the largest number of distances read at a time."""

    largest = 0

    def __getitem__(self, tile):
        part = super().__getitem__(tile)
        self.largest = max(self.largest, part.size)
        return part


@pytest.mark.parametrize("metric", VECTOR_METRICS)
def test_the_size_of_tiles_changes_only_the_memory(metric, monkeypatch):
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(90, 16, generator=generator).round()  # with ties
    labels = [np.arange(30) % 7, np.arange(60) % 9, np.arange(30) % 2, np.arange(60) % 3]
    whole = RecordingDistances(features[:30], features[30:], metric)
    expected = rank_queries(whole, *labels)
    assert whole.largest == 30 * 60
    for tile, rows in ((200, 2), (100, 5)):
        monkeypatch.setattr(module, "TILE", tile)
        monkeypatch.setattr(module, "MIN_TILE_ROWS", rows)
        parts = RecordingDistances(features[:30], features[30:], metric)
        ranking = rank_queries(parts, *labels)
        assert parts.largest == 60 * max(rows, tile // 60)
        for one, other in zip(ranking, expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_ranking_given_distances_takes_little_memory():
    rng = np.random.default_rng(0)
    distances = rng.random((300, 20_000), dtype=np.float32)  # 24 MB
    labels = [rng.integers(0, 2000, size) for size in (300, 20_000)]
    cameras = [rng.integers(0, 6, size) for size in (300, 20_000)]
    tracemalloc.start()
    rank_queries(distances, *labels, *cameras)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3e6
