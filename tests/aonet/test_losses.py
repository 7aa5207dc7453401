"""Eq. 5, 6 and 7 and the overlap of maps against loops."""

from __future__ import annotations

import math

import pytest
import torch
from reference import aonet_identity, aonet_orthogonal, aonet_overlap

from aonet_plugin.losses import (
    MIN_COSINE_DISTANCE,
    landmark_triplet_loss,
    orthogonal_loss,
    overlap_loss,
    visible_identity_loss,
)

SHAPES = [(1, 1, 1), (1, 4, 3), (5, 6, 7), (3, 2, 2)]  # images, landmarks, identities or channels


@pytest.mark.parametrize(("images", "landmarks", "identities"), SHAPES)
def test_identity_loss_equals_eq_5(images, landmarks, identities):
    logits = 5 * torch.randn(images, landmarks, identities, dtype=torch.float64)
    labels = torch.randint(0, identities, (images,))
    beta = torch.rand(images, landmarks, dtype=torch.float64)
    expected = aonet_identity(logits.numpy(), labels.tolist(), beta.numpy())
    loss = visible_identity_loss(logits, labels, beta)
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_identity_loss_is_not_divided_by_the_weights():
    """A half occluded image counts half."""
    logits, labels = torch.randn(4, 3, 5), torch.tensor([0, 1, 1, 4])
    whole = visible_identity_loss(logits, labels, torch.ones(4, 3))
    half = visible_identity_loss(logits, labels, torch.full((4, 3), 0.5))
    none = visible_identity_loss(logits, labels, torch.zeros(4, 3))
    assert half.item() == pytest.approx(whole.item() / 2) and none == 0


def test_label_smoothing():
    logits, labels = torch.randn(2, 3, 5).double(), torch.tensor([3, 0])
    sharp = visible_identity_loss(logits, labels, torch.ones(2, 3).double())
    uniform = -logits.log_softmax(dim=2).mean()
    smooth = visible_identity_loss(logits, labels, torch.ones(2, 3).double(), 0.1)
    torch.testing.assert_close(smooth, 0.9 * sharp + 0.1 * uniform)


@pytest.mark.parametrize(
    ("images", "landmarks", "dim"), [(1, 1, 3), (2, 2, 1), (5, 6, 7), (3, 4, 2)]
)
def test_orthogonal_loss_equals_eq_6(images, landmarks, dim):
    features = torch.randn(images, landmarks, dim, dtype=torch.float64)
    if dim == 1:  # all cosines are 1 or -1
        features[:, 0], features[:, 1] = 1.0, -1.0
    for reduction in ("mean", "sum"):
        expected = aonet_orthogonal(features.numpy(), summed=reduction == "sum")
        loss = orthogonal_loss(features, reduction)
        assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_orthogonal_loss_by_hand():
    """K = 2, cosine 1/2: -log(1/2) / 4."""
    features = torch.tensor([[[1.0, 0.0], [1.0, math.sqrt(3)]]])
    assert orthogonal_loss(features).item() == pytest.approx(math.log(2) / 4, rel=1e-5)
    assert orthogonal_loss(torch.eye(3)[None]) == 0
    assert orthogonal_loss(torch.tensor([[[1.0, 0.0], [-1.0, 0.1]]])) == 0  # beyond a right angle


def test_orthogonal_loss_is_finite_for_parallel_and_zero_features():
    for features in (torch.ones(2, 3, 4), torch.zeros(2, 3, 4), 1e-30 * torch.ones(2, 3, 4)):
        leaf = features.clone().requires_grad_()
        loss = orthogonal_loss(leaf)
        loss.backward()
        assert loss.isfinite() and leaf.grad.isfinite().all()
    parallel = orthogonal_loss(torch.ones(2, 3, 4)).item()
    assert parallel == pytest.approx(-math.log(MIN_COSINE_DISTANCE) * 3 / 9, rel=0.02)


def test_orthogonal_loss_ignores_the_norm():
    features = torch.rand(3, 4, 5).double()
    scaled = features * torch.rand(3, 4, 1).double()
    torch.testing.assert_close(orthogonal_loss(scaled), orthogonal_loss(features))


def test_losses_gradcheck():
    features = torch.rand(2, 3, 4, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(orthogonal_loss, (features,))
    labels = torch.tensor([0, 3])
    beta = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda f, b: visible_identity_loss(f, labels, b), (features, beta))
    maps = torch.rand(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(overlap_loss, (maps,))


@pytest.mark.parametrize(("images", "landmarks"), [(1, 1), (2, 3), (4, 6)])
def test_overlap_loss_equals_the_loop(images, landmarks):
    maps = torch.rand(images, landmarks, 4, 2, dtype=torch.float64)
    maps /= maps.sum(dim=(2, 3), keepdim=True)
    assert overlap_loss(maps).item() == pytest.approx(aonet_overlap(maps.numpy()), abs=1e-12)


def test_overlap_loss_extremes():
    apart = torch.eye(8).view(1, 8, 4, 2)
    assert overlap_loss(apart) == 0
    equal = torch.full((2, 6, 4, 2), 1 / 8)
    assert overlap_loss(equal).item() == pytest.approx(1 - 1 / 6)


def test_triplet_loss_by_hand():
    """Distances of images 0 and 1 (one identity) 3, of both to image 2 4 and 5."""
    features = torch.tensor([[0.0, 0], [3, 0], [0, 4]]).view(3, 2, 1)
    labels = torch.tensor([0, 0, 1])
    anchors = [max(0, 3 - 4 + 2), max(0, 3 - 5 + 2), max(0, 0 - 4 + 2)]
    loss = landmark_triplet_loss(features, labels, 2.0)
    assert loss.item() == pytest.approx(sum(anchors) / 3, abs=1e-5)


def test_losses_are_float32_under_autocast():
    features = torch.nn.functional.normalize(torch.randn(8, 3, 64), dim=2) + 0.5
    labels, beta = torch.arange(8), torch.rand(8, 3)
    computations = [
        lambda: orthogonal_loss(features),
        lambda: landmark_triplet_loss(features, labels, 5.0),
        lambda: visible_identity_loss(features, labels, beta),
    ]
    expected = [compute() for compute in computations]
    with torch.autocast("cpu", torch.bfloat16):
        actual = [compute() for compute in computations]
        halves = [
            orthogonal_loss(features.bfloat16()),
            landmark_triplet_loss(features.bfloat16(), labels, 5.0),
            visible_identity_loss(features.bfloat16(), labels, beta),
        ]
    torch.testing.assert_close(actual, expected)
    assert {loss.dtype for loss in (*actual, *halves)} == {torch.float32}


def test_half_precision_logits_are_cast_once():
    logits, labels = torch.randn(8, 3, 64).bfloat16(), torch.arange(8)
    loss = visible_identity_loss(logits, labels, torch.ones(8, 3))
    assert torch.equal(loss, visible_identity_loss(logits.float(), labels, torch.ones(8, 3)))
