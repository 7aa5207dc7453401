"""The nearest neighbors against all distances in float64."""

from __future__ import annotations

import pytest
import torch

from occluded_reid.evaluation import distances
from occluded_reid.evaluation.distances import FeatureDistances
from occluded_reid.evaluation.knn import find_neighbors
from occluded_reid.modeling.similarity import VECTOR_METRICS


def make_features(count=300, dim=16):
    """Vectors of very different norms."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, dim, generator=generator) * torch.linspace(0.1, 9, count)[:, None]


def check(features, metric, count, duplicates=()):
    """Compare with all distances in float64; ties may be broken either way."""
    duplicates = torch.tensor(duplicates, dtype=torch.int64)
    neighbors, ranges = find_neighbors(
        FeatureDistances(features, features, metric), count, duplicates
    )
    precise = features.double()
    every = FeatureDistances(precise, precise, metric).compute_tile(slice(None), slice(None))
    rounding = 2e-6 * float(every.abs().max())
    kept = [image for image in range(len(features)) if image not in duplicates]
    expected = torch.stack(every[:, kept].aminmax(dim=1), 1)
    torch.testing.assert_close(ranges.double(), expected, atol=rounding, rtol=0)
    assert neighbors[:, 0].tolist() == list(range(len(features)))
    assert all(len(set(row)) == count for row in neighbors.tolist())
    if metric == "dot":  # else the check of the first neighbor would prove nothing
        assert (every.argmin(1) != neighbors[:, 0]).any()
    every[:, duplicates] = torch.inf
    others = every.fill_diagonal_(torch.inf).sort(1).values[:, : count - 1]
    torch.testing.assert_close(every.gather(1, neighbors[:, 1:]), others, atol=rounding, rtol=0)


@pytest.fixture(params=[None, 2000], ids=["one tile", "many tiles"], autouse=True)
def tiles(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(distances, "TILE", request.param)
        monkeypatch.setattr(distances, "MIN_TILE_ROWS", 3)


@pytest.mark.parametrize("metric", VECTOR_METRICS)
@pytest.mark.parametrize("duplicates", [(), (2, 299)])
def test_an_image_is_its_own_first_neighbor_and_duplicates_are_nobodys(metric, duplicates):
    check(make_features(), metric, 5, duplicates)


@pytest.mark.parametrize("metric", VECTOR_METRICS)
def test_ties_may_be_broken_either_way(metric):
    check(make_features(100).repeat(3, 1), metric, 7)


@pytest.mark.parametrize("metric", VECTOR_METRICS)
@pytest.mark.parametrize("norm", [1e-9, 1e5])
def test_very_small_and_very_large_norms(metric, norm):
    check(norm * make_features(), metric, 5)
