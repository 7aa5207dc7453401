"""Distances: whole matrices, tiles and pairs agree with each other and with fast-reid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fastreid.utils.compute_dist import build_dist

from occluded_reid.evaluation import distances as module
from occluded_reid.evaluation.distances import FeatureDistances, distance_matrix
from occluded_reid.modeling.similarity import VECTOR_METRICS


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


@pytest.mark.parametrize("metric", VECTOR_METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiles_and_pairs_are_parts_of_the_whole(metric, dtype, monkeypatch):
    monkeypatch.setattr(module, "TILE", 1024)  # four pairs at a time
    query, gallery = torch.randn(6, 8, dtype=dtype), torch.randn(8, 11, dtype=dtype).T
    before = query.clone(), gallery.clone()
    whole = distance_matrix(query, gallery, metric)
    distances = FeatureDistances(query, gallery, metric)
    for rows in (slice(0, 4), slice(4, 6)):
        for columns in (slice(0, 3), slice(3, 11), slice(3, 11), slice(0, 3)):
            part = distances[rows, columns]
            np.testing.assert_allclose(part, whole[rows, columns], atol=1e-5)
    rows, columns = torch.randint(6, (30,)), torch.randint(11, (30,))
    pairs = distances.compute_pairs(rows, columns)
    np.testing.assert_allclose(pairs, whole[rows.numpy(), columns.numpy()], atol=1e-5)
    assert torch.equal(query, before[0]) and torch.equal(gallery, before[1])


@pytest.mark.parametrize("metric", VECTOR_METRICS)
def test_distances_from_bfloat16_are_float32_and_close(metric):
    query, gallery = torch.randn(6, 64), torch.randn(11, 64)
    rounded = distance_matrix(query.bfloat16(), gallery.bfloat16(), metric)
    exact = distance_matrix(query, gallery, metric)
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, exact, atol=0.5, rtol=0.02)


def test_dot_computes_no_norms(monkeypatch):
    monkeypatch.setattr(torch.linalg, "vector_norm", None)
    distance_matrix(torch.randn(2, 3), torch.randn(4, 3), "dot")


def test_a_zero_vector_is_far_by_cosine_and_not_nan():
    assert distance_matrix(torch.zeros(1, 3), torch.eye(3), "cosine").tolist() == [[1, 1, 1]]
