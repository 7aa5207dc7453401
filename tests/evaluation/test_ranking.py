"""Rankings equal fast-reid's on every query, for any size of tiles."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from fastreid.evaluation.rank import eval_market1501
from hypothesis import given, settings
from hypothesis import strategies as st

from occluded_reid.evaluation import distances as module
from occluded_reid.evaluation.distances import METRICS, FeatureDistances
from occluded_reid.evaluation.ranking import rank_queries


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


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([2**23, 60, 7]))
def test_ranking_equals_fastreids_with_a_stable_order(seed, ties, tile):
    rng = np.random.default_rng(seed)
    queries, gallery = rng.integers(1, 8), rng.integers(20, 60)
    distances = rng.random((queries, gallery)).astype(np.float32)
    if ties:
        distances = np.round(distances * 3) / 3
    labels = [
        rng.integers(0, high, size)
        for size, high in ((queries, 5), (gallery, 5), (queries, 3), (gallery, 3))
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TILE", tile)
        patch.setattr(module, "MIN_TILE_ROWS", 3)
        ranking = rank_queries(distances, *labels)
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


@pytest.mark.parametrize("metric", METRICS)
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
