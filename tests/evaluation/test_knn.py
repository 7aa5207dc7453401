"""The nearest images: by float32, and proposed by products of half the bytes, which is the same."""

from __future__ import annotations

import pytest
import torch

from occluded_reid.evaluation import distances, knn
from occluded_reid.evaluation.distances import METRICS, FeatureDistances
from occluded_reid.evaluation.knn import half_type, nearest_images
from occluded_reid.evaluation.rounded import Rounded

HALVES = (torch.bfloat16, torch.float16)


def drawn(count=300, dim=16):
    """Vectors of very different lengths."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, dim, generator=generator) * torch.linspace(0.1, 9, count)[:, None]


def check(features, metric, count, hidden=()):
    """Compare with all distances in float64; of equally near images any may be taken."""
    hidden = torch.tensor(hidden, dtype=torch.int64)
    found, ranges = nearest_images(FeatureDistances(features, features, metric), count, hidden)
    precise = features.double()
    whole = FeatureDistances(precise, precise, metric).tile(slice(None), slice(None))
    rounding = 2e-6 * float(whole.abs().max())
    shown = [image for image in range(len(features)) if image not in hidden]
    expected = torch.stack(whole[:, shown].aminmax(dim=1), 1)
    torch.testing.assert_close(ranges.double(), expected, atol=rounding, rtol=0)
    assert found[:, 0].tolist() == list(range(len(features)))
    assert all(len(set(row)) == count for row in found.tolist())
    if metric == "dot":  # else the check of the first neighbour says nothing
        assert (whole.argmin(1) != found[:, 0]).any()
    whole[:, hidden] = torch.inf
    others = whole.fill_diagonal_(torch.inf).sort(1).values[:, : count - 1]
    torch.testing.assert_close(whole.gather(1, found[:, 1:]), others, atol=rounding, rtol=0)


@pytest.fixture
def left(monkeypatch):
    """How many images the products of half the bytes left to float32, by call."""
    found, original = [], knn._from_proposals

    def counted(*args):
        rows = original(*args)
        found.append(len(rows))
        return rows

    monkeypatch.setattr(knn, "_from_proposals", counted)
    return found


@pytest.fixture(params=[None, *HALVES], ids=str)
def half(request, monkeypatch, left):
    """Each way of finding them, in tiles of a few rows; most images by the way that is meant."""
    monkeypatch.setattr(knn, "half_type", lambda _: request.param)
    monkeypatch.setattr(knn, "GROUP", 8)
    monkeypatch.setattr(knn, "FEW", 0)
    monkeypatch.setattr(distances, "TILE", 2000)
    monkeypatch.setattr(distances, "LEAST_ROWS", 3)
    yield request.param
    assert (left == []) if request.param is None else (left[0] < 150)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("hidden", [(), (2, 299)])
def test_an_image_is_its_own_first_neighbour_and_hidden_ones_are_nobodys(metric, hidden, half):
    check(drawn(), metric, 5, hidden)


@pytest.mark.parametrize("metric", METRICS)
def test_of_equal_images_any_is_taken(metric, half):
    check(drawn(100).repeat(3, 1), metric, 7)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("length", [1e-9, 1e5])
def test_very_short_and_very_long_vectors(metric, length, half):
    check(length * drawn(), metric, 5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("half", HALVES, indirect=True, ids=str)
def test_rounded_products_alone_would_miss_some(metric, half, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    angles = 2 * torch.pi * torch.rand(900, generator=generator)
    lengths = 1 + 1e-3 * torch.rand(900, 1, generator=generator)
    features = lengths * torch.stack([angles.sin(), angles.cos()], 1)
    check(features, metric, 5)
    monkeypatch.setattr(Rounded, "bounds", lambda _, vectors: torch.zeros(len(vectors)))
    monkeypatch.setattr(Rounded, "rounding", 0)
    with pytest.raises(AssertionError):
        check(features, metric, 5)


@pytest.mark.parametrize("half", [torch.float16])
def test_where_too_many_are_as_near_float32_finds_them(half, left, monkeypatch):
    monkeypatch.setattr(knn, "half_type", lambda _: half)
    monkeypatch.setattr(knn, "FEW", 0)
    check(torch.cat([drawn(dim=8), 50 + 1e-3 * drawn(dim=8)]), "euclidean", 3)
    assert 300 <= left[0] < 600


def test_half_the_bytes_only_where_the_processor_has_units_for_them(monkeypatch):
    features = drawn()
    distances = FeatureDistances(features, features, "dot")
    for units, expected in [
        ({"amx_fp16": True, "amx_bf16": True}, torch.float16),
        ({"amx_fp16": False, "amx_bf16": True}, torch.bfloat16),
        ({"avx512_f": True}, None),
    ]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda units=units: units, raising=False)
        assert half_type(distances) == expected
    units["amx_fp16"] = True
    assert half_type(FeatureDistances(features.double(), features.double(), "dot")) is None
    assert half_type(FeatureDistances(features, features, "dot", "meta")) is None
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert half_type(distances) is None
