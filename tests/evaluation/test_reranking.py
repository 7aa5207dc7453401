"""k-reciprocal re-ranking against the published description, computed image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fastreid.evaluation.rerank import re_ranking

from occluded_reid.evaluation import distances, reranking
from occluded_reid.evaluation.distances import distance_matrix
from occluded_reid.evaluation.duplicates import assign_images
from occluded_reid.evaluation.reranking import RerankedDistances
from occluded_reid.modeling.similarity import VECTOR_METRICS


def rerank_with_sets(original, queries, k1, k2, weight):
    """Zhong et al., CVPR 2017, Eq. 2-3, 7-12, with sets and dictionaries.

    Args:
        original: (N, N) distances, in each row 0 to the image itself and at most 1.
    """
    count = len(original)
    ranked = [
        sorted(range(count), key=lambda j, i=i: (j != i, original[i][j])) for i in range(count)
    ]

    def reciprocal(image, k):
        first = ranked[image][: k + 1]
        return {other for other in first if image in ranked[other][: k + 1]}

    encodings = []
    for image in range(count):
        base = reciprocal(image, k1)
        expanded = set(base)
        for member in base:
            small = reciprocal(member, round(k1 / 2))
            if len(base & small) > 2 / 3 * len(small):
                expanded |= small
        values = {other: np.exp(-original[image][other]) for other in expanded}
        total = sum(values.values())
        encodings.append({other: value / total for other, value in values.items()})
    local = [
        {m: np.mean([encodings[j].get(m, 0) for j in ranked[i][:k2]]) for m in range(count)}
        for i in range(count)
    ]
    reranked = np.empty((queries, count - queries))
    for i in range(queries):
        for j in range(queries, count):
            minima = sum(min(local[i][m], local[j][m]) for m in range(count))
            maxima = sum(max(local[i][m], local[j][m]) for m in range(count))
            jaccard = 1 - minima / maxima
            reranked[i, j - queries] = (1 - weight) * jaccard + weight * original[i][j]
    return reranked


def make_clusters(identities=7, each=6, dim=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(identities, dim, generator=generator)
    noise = torch.randn(identities * each, dim, generator=generator)
    norms = 0.5 + torch.rand(identities * each, 1, generator=generator)
    return norms * (centers.repeat(each, 1) + 0.7 * noise)


def scale_distances(features, metric):
    """Return the distances by each metric, scaled to [0, 1] in each row."""
    features = features.double().numpy()
    if metric == "cosine":
        features = features / np.linalg.norm(features, axis=1, keepdims=True)
    if metric == "dot":
        products = features @ features.T
        largest, smallest = products.max(1, keepdims=True), products.min(1, keepdims=True)
        scaled = (largest - products) / (largest - smallest)
        np.fill_diagonal(scaled, 0)
        return scaled
    squares = np.square(features[:, None] - features[None]).sum(2)
    return squares / squares.max(1, keepdims=True)


@pytest.mark.parametrize("metric", VECTOR_METRICS)
@pytest.mark.parametrize(
    ("k1", "k2", "weight"), [(8, 3, 0.3), (5, 1, 0.0), (2, 6, 1.0), (60, 4, 0.5)]
)
def test_reranking_equals_the_published_description(metric, k1, k2, weight, monkeypatch):
    features = make_clusters()
    original = scale_distances(features, metric)
    expected = rerank_with_sets(original, 10, k1, k2, weight)
    reranked = RerankedDistances(features, 10, metric, k1=k1, k2=k2, weight=weight)
    assert reranked.shape == (10, 32)
    np.testing.assert_allclose(reranked[:, :], expected, atol=2e-6)
    for module in (distances, reranking):
        monkeypatch.setattr(module, "TILE", 500)
    monkeypatch.setattr(distances, "MIN_TILE_ROWS", 3)
    again = RerankedDistances(features, 10, metric, k1=k1, k2=k2, weight=weight)
    np.testing.assert_allclose(again[2:9, 5:30], expected[2:9, 5:30], atol=2e-6)


def test_euclidean_equals_the_authors_code():
    features = make_clusters(seed=1)
    distances = np.sqrt(np.maximum(distance_matrix(features, features, "euclidean"), 0))
    parts = distances[:10, 10:], distances[:10, :10], distances[10:, 10:]
    expected = re_ranking(*parts, k1=9, k2=4, lambda_value=0.3)
    reranked = RerankedDistances(features, 10, "euclidean", k1=9, k2=4, weight=0.3)
    np.testing.assert_allclose(reranked[:, :], expected, atol=2e-6)


def test_dot_ignores_a_common_scale_but_not_the_norms():
    features = make_clusters()
    plain = RerankedDistances(features, 10, "dot", k1=6, k2=2, weight=0.3)[:, :]
    unit = features / features.norm(dim=1, keepdim=True)
    assert (
        np.abs(RerankedDistances(unit, 10, "dot", k1=6, k2=2, weight=0.3)[:, :] - plain).max() > 0.1
    )
    scaled = RerankedDistances(5 * features, 10, "dot", k1=6, k2=2, weight=0.3)[:, :]
    np.testing.assert_allclose(scaled, plain, atol=1e-5)
    original = RerankedDistances(features, 10, "dot", k1=6, k2=2, weight=1.0)[:, :]
    assert original.min() >= 0 and original.max() <= 1
    order = distance_matrix(features[:10], features[10:], "dot").argsort(1)
    np.testing.assert_array_equal(original.argsort(1), order)


@pytest.mark.parametrize("metric", VECTOR_METRICS)
def test_a_query_and_its_duplicate_are_one_image(metric):
    """Duplicates in the gallery change nothing, and are encoded like their queries."""
    features = make_clusters()
    queries, gallery = features[:10], features[10:].clone()
    gallery[[4, 0, 31]] = queries[[2, 7, 9]]
    digests = np.arange(42)
    digests[[14, 10, 41]] = [2, 7, 9]
    images = assign_images(digests, 10)
    whole = torch.cat([queries, gallery])
    options = dict(k1=6, k2=3, weight=0.3)
    masked = RerankedDistances(whole, 10, metric, images=images, **options)[:, :]
    kept = np.setdiff1d(np.arange(32), [0, 4, 31])
    alone = torch.cat([queries, gallery[kept]])
    expected = RerankedDistances(alone, 10, metric, **options)[:, :]
    np.testing.assert_allclose(masked[:, kept], expected, atol=2e-6)
    plain = RerankedDistances(whole, 10, metric, **options)[:, :]
    assert np.abs(plain - masked).max() > 1e-3
    # image 4 is query 2 itself: no other image is nearer
    assert masked[2].argmin() == 4
    jaccard = RerankedDistances(whole, 10, metric, images=images, k1=6, k2=3, weight=0.0)
    assert jaccard[:, :][2, 4] == pytest.approx(0, abs=1e-6)
