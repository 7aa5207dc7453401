"""Eq. 2, 8, 9 and 10 against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import cross_entropy, fed_contrast, fed_total, fed_visibility_loss

from fed_plugin.losses import (
    Term,
    identity_loss,
    memory_contrast_loss,
    visibility_loss,
    weight_terms,
)

SHAPES = [(1, 1, 1), (1, 4, 3), (5, 4, 7), (3, 2, 2)]  # images, parts, identities


@pytest.mark.parametrize(("images", "parts", "_"), SHAPES)
def test_visibility_loss_equals_eq_2(images, parts, _):
    scores = torch.rand(images, parts, dtype=torch.float64)
    masks = torch.randint(0, 2, (images, parts)).double()
    expected = fed_visibility_loss(scores.numpy(), masks.numpy())
    assert visibility_loss(scores, masks).item() == pytest.approx(expected, rel=1e-12)


def test_visibility_loss_extremes():
    exact = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    assert visibility_loss(exact, exact) == 0
    assert visibility_loss(exact, 1 - exact) == 1


@pytest.mark.parametrize(("images", "_", "identities"), SHAPES)
def test_identity_loss_equals_eq_8(images, _, identities):
    logits = 5 * torch.randn(images, identities, dtype=torch.float64)
    labels = torch.randint(0, identities, (images,))
    expected = cross_entropy(logits.numpy(), labels.tolist())
    assert identity_loss(logits, labels).item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("images", "_", "identities"), SHAPES)
@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("dim", [1, 12])
def test_contrast_loss_equals_eq_9(images, _, identities, temperature, dim):
    features = torch.randn(images, dim, dtype=torch.float64)
    centres = torch.randn(identities, dim, dtype=torch.float64)
    labels = torch.randint(0, identities, (images,))
    expected = fed_contrast(features.numpy(), centres.numpy(), labels.tolist(), temperature)
    loss = memory_contrast_loss(features, centres, labels, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_contrast_loss_gradcheck():
    features = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    centres, labels = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 4, 4])
    torch.autograd.gradcheck(lambda f: memory_contrast_loss(f, centres, labels, 0.5), (features,))


def test_contrast_loss_has_a_gradient_far_from_the_centre():
    """A softmax with an epsilon in its logarithm stops at -log(1e-6) = 13.8, without a gradient."""
    centres = torch.eye(2)
    feature = torch.tensor([[1.0, 0.01]], requires_grad=True)
    loss = memory_contrast_loss(feature, centres, torch.tensor([1]), 0.05)
    loss.backward()
    assert loss > 19 and feature.grad.abs().max() > 1


def test_losses_are_float32_under_autocast():
    features = torch.nn.functional.normalize(torch.randn(64, 96), dim=1)
    centres = torch.nn.functional.normalize(features + 0.05 * torch.randn(64, 96), dim=1)
    labels = torch.arange(64)
    expected = memory_contrast_loss(features, centres, labels, 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        loss = memory_contrast_loss(features, centres, labels, 0.05)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_losses_of_half_precision_inputs_are_float32():
    half = torch.rand(4, 5).bfloat16()
    labels = torch.arange(4)
    assert identity_loss(half, labels).dtype == torch.float32
    assert visibility_loss(half, half).dtype == torch.float32
    assert memory_contrast_loss(half, half, labels, 0.05).dtype == torch.float32


def test_weighted_terms_sum_to_eq_10():
    values = np.random.default_rng(0).random(12)
    kinds = ["visibility"] * 2 + ["identity"] * 6 + ["contrast"] * 4
    terms = {
        Term(kind, f"feature{number}", "branch"): torch.tensor(value)
        for number, (kind, value) in enumerate(zip(kinds, values, strict=True))
    }
    weights = {"visibility": 0.5, "identity": 0.5, "contrast": 0.5}
    weighted = weight_terms(terms, weights, num_branches=2)
    assert list(weighted) == [term.name for term in terms]
    expected = fed_total(list(values[:2]), list(values[2:8]), list(values[8:]))
    assert float(sum(weighted.values())) == pytest.approx(expected, rel=1e-12)


def test_each_kind_has_its_weight_and_a_single_branch_counts_twice():
    terms = {
        Term("identity", "erased", "holistic"): torch.tensor(3.0),
        Term("contrast", "erased", "holistic"): torch.tensor(5.0),
        Term("visibility", "", "occluded"): torch.tensor(7.0),
    }
    weights = {"identity": 0.5, "contrast": 0.1, "visibility": 0.0}
    weighted = weight_terms(terms, weights, num_branches=1)
    assert weighted == {
        "loss_identity_erased_holistic": 3,
        "loss_contrast_erased_holistic": 1,
        "loss_visibility_occluded": 0,
    }
