"""Query expansion against fast-reid's and a loop; a query and its duplicate count once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastreid.evaluation.query_expansion import aqe

from occluded_reid.evaluation import distances, query_expansion
from occluded_reid.evaluation.distances import distance_matrix
from occluded_reid.evaluation.duplicates import assign_images
from occluded_reid.evaluation.query_expansion import expand_features
from occluded_reid.modeling.similarity import VECTOR_METRICS


def make_positive_features(count=24, dim=6):
    return torch.rand(count, dim, generator=torch.Generator().manual_seed(1))


def expand_in_a_loop(features, metric, count, alpha):
    expanded = []
    for own in features:
        products = features @ own
        cosines = products / features.norm(dim=1) / own.norm()
        similarity = {
            "dot": products, "cosine": cosines, "euclidean": -(features - own).square().sum(1)
        }[metric].clone()  # fmt: skip
        similarity[(features == own).all(1)] = torch.inf
        chosen = similarity.argsort(descending=True)[:count]
        weights = (products if metric == "dot" else cosines)[chosen].clamp_min(0) ** alpha
        expanded.append((weights[:, None] * features[chosen]).sum(0) / weights.sum())
    return torch.stack(expanded)


@pytest.mark.parametrize("metric", VECTOR_METRICS)
@pytest.mark.parametrize("tile", [2**23, 100])
@pytest.mark.parametrize("alpha", [3.0, 0.0])
def test_expansion_equals_the_weighted_mean_in_a_loop(metric, tile, alpha, monkeypatch):
    monkeypatch.setattr(distances, "TILE", tile)
    monkeypatch.setattr(query_expansion, "TILE", tile)
    features = torch.randn(24, 6, generator=torch.Generator().manual_seed(1)).double()
    before = features.clone()
    expanded, _ = expand_features(features, metric, times=2, count=4, alpha=alpha)
    expected = features
    for _ in range(2):
        expected = expand_in_a_loop(expected, metric, 4, alpha)
    torch.testing.assert_close(expanded, expected)
    assert torch.equal(features, before)


def test_cosine_equals_fastreids():
    features = make_positive_features()
    query, gallery = aqe(features[:8], features[8:], qe_times=1, qe_k=5, alpha=3.0)
    own, _ = expand_features(features, "cosine", times=1, count=5, alpha=3.0)
    ours = distance_matrix(own[:8], own[8:], "cosine")
    np.testing.assert_allclose(ours, distance_matrix(query, gallery, "cosine"), atol=1e-6)


def test_dot_keeps_the_meaning_of_norms():
    """An occluded image has a small norm; normalized features would rank differently."""
    features = make_positive_features() * torch.linspace(0.05, 1, 24)[:, None]
    expanded, _ = expand_features(features, "dot", times=1, count=3, alpha=1.0)
    scaled, _ = expand_features(2 * features, "dot", times=1, count=3, alpha=1.0)
    torch.testing.assert_close(scaled, 2 * expanded)
    normalized, _ = expand_features(F.normalize(features), "dot", times=1, count=3, alpha=1.0)
    ranks = [-(each[:8] @ each[8:].T) for each in (expanded, normalized)]
    assert not torch.equal(ranks[0].argsort(1), ranks[1].argsort(1))


def test_an_image_without_similar_ones_stays_unchanged():
    features = torch.cat([torch.zeros(1, 3), torch.eye(3)])
    expanded, _ = expand_features(features, "dot", times=1, count=2, alpha=3.0)
    torch.testing.assert_close(expanded, features)
    expanded, _ = expand_features(features, "cosine", times=1, count=99, alpha=1.0)
    assert expanded.isfinite().all()


@pytest.mark.parametrize("metric", VECTOR_METRICS)
def test_a_duplicate_votes_once_and_is_expanded_as_its_query(metric):
    """A gallery with duplicates expands like the one without them."""
    features = torch.randn(20, 6, generator=torch.Generator().manual_seed(2))
    gallery = features[4:].clone()
    gallery[[3, 0]] = features[[0, 2]]
    digests = np.arange(20)
    digests[[7, 4]] = [0, 2]
    images = assign_images(digests, 4)
    whole = torch.cat([features[:4], gallery])
    kept = images == torch.arange(20)
    expanded, _ = expand_features(whole, metric, times=2, count=4, alpha=2.0, images=images)
    expected, _ = expand_features(whole[kept], metric, times=2, count=4, alpha=2.0)
    torch.testing.assert_close(expanded[kept], expected)
    torch.testing.assert_close(expanded[[7, 4]], expanded[[0, 2]], rtol=0, atol=0)
    counted_twice, _ = expand_features(whole, metric, times=2, count=4, alpha=2.0)
    assert not torch.allclose(counted_twice, expanded)
