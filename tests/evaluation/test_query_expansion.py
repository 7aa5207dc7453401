"""Query expansion against fast-reid's and against a loop; a query's own copy counts once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastreid.evaluation.query_expansion import aqe

from occluded_reid.evaluation import distances, query_expansion
from occluded_reid.evaluation.distances import METRICS, distance_matrix
from occluded_reid.evaluation.duplicates import hidden_copies, image_of_each, own_copies
from occluded_reid.evaluation.query_expansion import expand


def positive_features(count=24, dim=6):
    return torch.rand(count, dim, generator=torch.Generator().manual_seed(1))


def expanded_by_a_loop(features, metric, count, alpha):
    found = []
    for own in features:
        products = features @ own
        cosines = products / features.norm(dim=1) / own.norm()
        closeness = {
            "dot": products, "cosine": cosines, "euclidean": -(features - own).square().sum(1)
        }[metric].clone()  # fmt: skip
        closeness[(features == own).all(1)] = torch.inf
        chosen = closeness.argsort(descending=True)[:count]
        weights = (products if metric == "dot" else cosines)[chosen].clamp_min(0) ** alpha
        found.append((weights[:, None] * features[chosen]).sum(0) / weights.sum())
    return torch.stack(found)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("tile", [2**23, 100])
@pytest.mark.parametrize("alpha", [3.0, 0.0])
def test_expansion_is_the_weighted_mean_of_a_loop(metric, tile, alpha, monkeypatch):
    monkeypatch.setattr(distances, "TILE", tile)
    monkeypatch.setattr(query_expansion, "TILE", tile)
    features = torch.randn(24, 6, generator=torch.Generator().manual_seed(1)).double()
    before = features.clone()
    found = expand(features, metric, times=2, count=4, alpha=alpha)
    expected = features
    for _ in range(2):
        expected = expanded_by_a_loop(expected, metric, 4, alpha)
    torch.testing.assert_close(found, expected)
    assert torch.equal(features, before)


def test_by_cosine_it_is_fastreids():
    features = positive_features()
    query, gallery = aqe(features[:8], features[8:], qe_times=1, qe_k=5, alpha=3.0)
    own = expand(features, "cosine", times=1, count=5, alpha=3.0)
    ours = distance_matrix(own[:8], own[8:], "cosine")
    np.testing.assert_allclose(ours, distance_matrix(query, gallery, "cosine"), atol=1e-6)


def test_by_inner_product_lengths_keep_their_meaning():
    """An occluded image is a short vector; normalised vectors would rank otherwise."""
    features = positive_features() * torch.linspace(0.05, 1, 24)[:, None]
    found = expand(features, "dot", times=1, count=3, alpha=1.0)
    scaled = expand(2 * features, "dot", times=1, count=3, alpha=1.0)
    torch.testing.assert_close(scaled, 2 * found)
    normalised = expand(F.normalize(features), "dot", times=1, count=3, alpha=1.0)
    ranks = [-(each[:8] @ each[8:].T) for each in (found, normalised)]
    assert not torch.equal(ranks[0].argsort(1), ranks[1].argsort(1))


def test_an_image_without_any_alike_stays_as_it_is():
    features = torch.cat([torch.zeros(1, 3), torch.eye(3)])
    found = expand(features, "dot", times=1, count=2, alpha=3.0)
    torch.testing.assert_close(found, features)
    assert expand(features, "cosine", times=1, count=99, alpha=1.0).isfinite().all()


def test_copies_are_found_by_name_identity_and_camera_or_as_the_data_set_tells():
    paths = np.array(["q/a.jpg", "q/b.jpg", "q/c.jpg", "g/a.jpg", "g/c.jpg", "g/b.jpg", "g/x.jpg"])
    identities = np.array([1, 2, 3, 1, 3, 2, 9])
    cameras = np.array([0, 0, 0, 0, 5, 0, 0])
    found = own_copies(paths, identities, cameras, 3)
    assert found.tolist() == [0, 2, -1]  # c.jpg is of another camera
    known = {"q/c.jpg": "g/x.jpg", "q/a.jpg": "left out of the gallery"}
    told = own_copies(paths, identities, cameras, 3, known)
    assert told.tolist() == [-1, -1, 3]
    assert own_copies(paths, identities, cameras, 3, {}).tolist() == [-1, -1, -1]
    images = image_of_each(found, 4)
    assert images.tolist() == [0, 1, 2, 0, 4, 1, 6]
    assert hidden_copies(images).tolist() == [3, 5]


@pytest.mark.parametrize("metric", METRICS)
def test_a_copy_votes_once_and_is_expanded_as_its_query(metric):
    """The gallery with the copies expands as the one without them."""
    features = torch.randn(20, 6, generator=torch.Generator().manual_seed(2))
    copies = np.array([3, -1, 0, -1])
    gallery = features[4:].clone()
    gallery[[3, 0]] = features[[0, 2]]
    images = image_of_each(copies, 16)
    whole = torch.cat([features[:4], gallery])
    kept = images == torch.arange(20)
    found = expand(whole, metric, times=2, count=4, alpha=2.0, images=images)
    expected = expand(whole[kept], metric, times=2, count=4, alpha=2.0)
    torch.testing.assert_close(found[kept], expected)
    torch.testing.assert_close(found[[7, 4]], found[[0, 2]], rtol=0, atol=0)
    unmasked = expand(whole, metric, times=2, count=4, alpha=2.0)
    assert not torch.allclose(unmasked, found)
