"""Memory search and diffusion against Sec. 3.2 and Eq. 4-7 in loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import fed_attention, fed_diffusion, fed_memory_search
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fed.tiny import array, build_fdm
from fed_plugin.diffusion import (
    CentreAttention,
    FeatureDiffusion,
    FeedForward,
    nearest_other_identities,
)


@pytest.mark.parametrize("number", [1, 2, 5, 6, 7, 50])
@pytest.mark.parametrize("identities", [[0], [3, 3, 6, 0]])
def test_the_search_finds_the_nearest_centres_of_others(number, identities):
    centres = torch.randn(7, 5, dtype=torch.float64)
    features = torch.randn(len(identities), 5, dtype=torch.float64)
    found = nearest_other_identities(features, centres, torch.tensor(identities), number)
    for image, identity in enumerate(identities):
        expected = fed_memory_search(features[image].numpy(), centres.numpy(), identity, number)
        assert found[image].tolist() == expected


def test_the_own_centre_is_left_out_even_where_it_is_the_nearest():
    centres = torch.randn(9, 6)
    found = nearest_other_identities(centres, centres, torch.arange(9), 8)
    for identity, row in enumerate(found.tolist()):
        assert sorted(row) == [other for other in range(9) if other != identity]


def test_one_identity_has_no_neighbors():
    found = nearest_other_identities(torch.randn(3, 4), torch.randn(1, 4), torch.zeros(3).long(), 8)
    assert found.shape == (3, 0)


def test_the_search_is_the_same_under_autocast():
    chance = torch.Generator().manual_seed(0)
    features = torch.randn(1, 64, generator=chance)
    centres = features + 0.02 * torch.randn(40, 64, generator=chance)  # cosines within 0.001
    labels = torch.tensor([0])
    expected = nearest_other_identities(features, centres, labels, 10)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_other_identities(features, centres, labels, 10), expected)


def projections(attention: CentreAttention) -> dict[str, np.ndarray]:
    return {n: array(getattr(attention, n).weight) for n in ("query", "key", "value", "output")}


@pytest.mark.parametrize(
    ("batch", "dim", "heads", "neighbors"),
    [(1, 4, 1, 1), (3, 8, 2, 3), (2, 12, 4, 5), (2, 6, 6, 2), (2, 4, 2, 0)],
)
@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_attention_is_equations_4_to_6(batch, dim, heads, neighbors, scale):
    attention = CentreAttention(dim=dim, num_heads=heads, scale=scale).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    features = torch.randn(batch, dim, dtype=torch.float64)
    centres = torch.randn(6, dim, dtype=torch.float64)
    rows = torch.stack([torch.randperm(6)[:neighbors] for _ in range(batch)])
    mixed = attention(features, centres, rows)
    factor = scale or 1 / np.sqrt(dim / heads)
    for image in range(batch):
        expected = fed_attention(
            features[image].numpy(), centres[rows[image]].numpy(), projections(attention),
            heads, factor,
        )  # fmt: skip
        np.testing.assert_allclose(array(mixed[image]), expected, rtol=1e-9, atol=1e-12)


def test_the_work_of_attention_does_not_grow_with_the_bank():
    attention = CentreAttention(dim=12, num_heads=4)

    def work(identities: int) -> int:
        with FlopCounterMode(display=False) as counter:
            mixed = attention(
                torch.randn(3, 12), torch.randn(identities, 12), torch.ones(3, 2).int()
            )
            mixed.sum().backward()
        return counter.get_total_flops()

    assert work(1000) == work(10) > 0


def ffn_weights(ffn: FeedForward) -> dict[str, np.ndarray]:
    return {
        "first": array(ffn.layers[0].weight), "first_bias": array(ffn.layers[0].bias),
        "second": array(ffn.layers[2].weight), "second_bias": array(ffn.layers[2].bias),
        "norm": array(ffn.norm.weight), "norm_bias": array(ffn.norm.bias),
    }  # fmt: skip


def diffusion_of(dim: int, parts: int, **changed) -> FeatureDiffusion:
    diffusion = build_fdm(dim, parts, **changed).double()
    for parameter in diffusion.parameters():
        nn.init.normal_(parameter, std=0.7)
    return diffusion


@pytest.mark.parametrize(
    ("batch", "parts", "dim", "ratio"), [(1, 1, 4, 1), (3, 4, 4, 4), (2, 2, 6, 2)]
)
@pytest.mark.parametrize("normalize", [True, False])
def test_diffusion_is_equation_7(batch, parts, dim, ratio, normalize):
    diffusion = diffusion_of(dim, parts, ffn_ratio=ratio, normalize_centres=normalize)
    features = torch.randn(batch, parts * dim, dtype=torch.float64)
    visibility = torch.rand(batch, parts, dtype=torch.float64)
    centres = 3 * torch.randn(7, parts * dim, dtype=torch.float64)
    identities = torch.randint(0, 7, (batch,))
    diffused = diffusion(features, visibility, identities, centres)
    for image in range(batch):
        feature = features[image].numpy()
        rows = fed_memory_search(feature, centres.numpy(), int(identities[image]), 3)
        nearest = centres.numpy()[rows]
        if normalize:
            nearest = nearest / np.linalg.norm(nearest, axis=1, keepdims=True)
        attended = fed_attention(
            feature, nearest, projections(diffusion.attention), 2, 1 / np.sqrt(parts * dim / 2)
        )
        expected = fed_diffusion(
            attended, feature, visibility[image].numpy(),
            ffn_weights(diffusion.first_ffn), ffn_weights(diffusion.second_ffn),
        )  # fmt: skip
        np.testing.assert_allclose(array(diffused[image]), expected, rtol=1e-9, atol=1e-12)


def test_nobody_is_added_where_nothing_is_visible():
    """Visibility 0: f'_d = FFN_2(f'), whatever the bank holds; visibility 1 lets them in."""
    diffusion = diffusion_of(4, 4)
    features = torch.randn(2, 16, dtype=torch.float64)
    identities = torch.tensor([0, 1])
    banks = torch.randn(2, 5, 16, dtype=torch.float64)
    hidden, seen = (torch.full((2, 4), value, dtype=torch.float64) for value in (0.0, 1.0))
    expected = diffusion.second_ffn(features.unflatten(1, (4, -1))).flatten(1)
    for bank in banks:
        torch.testing.assert_close(diffusion(features, hidden, identities, bank), expected)
    one, other = (diffusion(features, seen, identities, bank) for bank in banks)
    assert (one - other).abs().max() > 0.01


def test_rows_of_the_batch_do_not_mix():
    """The authors' code swaps batch and heads, so that one row holds pieces of eight images."""
    diffusion = diffusion_of(4, 4, num_heads=4)
    features = torch.randn(5, 16, dtype=torch.float64)
    visibility, identities = torch.rand(5, 4, dtype=torch.float64), torch.arange(5)
    centres = torch.randn(6, 16, dtype=torch.float64)
    whole = diffusion(features, visibility, identities, centres)
    for image in range(5):
        alone = slice(image, image + 1)
        one = diffusion(features[alone], visibility[alone], identities[alone], centres)
        torch.testing.assert_close(one, whole[alone])


def test_all_weights_learn_and_the_bank_gets_no_gradient():
    diffusion = diffusion_of(4, 4, neck=True)
    features = torch.randn(5, 16, dtype=torch.float64, requires_grad=True)
    visibility = torch.rand(5, 4, dtype=torch.float64, requires_grad=True)
    centres = torch.randn(6, 16, dtype=torch.float64)
    diffusion(features, visibility, torch.arange(5), centres).square().sum().backward()
    still = [n for n, p in diffusion.named_parameters() if p.requires_grad and p.grad is None]
    assert still == [] and visibility.grad is not None and features.grad is not None


def test_diffusion_has_the_gradient_of_its_value():
    diffusion = diffusion_of(4, 2)  # a layer norm over two channels has no gradient to speak of
    centres, identities = torch.randn(5, 8, dtype=torch.float64), torch.tensor([0, 3])
    inputs = (
        torch.randn(2, 8, dtype=torch.float64, requires_grad=True),
        torch.rand(2, 2, dtype=torch.float64, requires_grad=True),
    )
    torch.autograd.gradcheck(lambda f, v: diffusion(f, v, identities, centres), inputs)
