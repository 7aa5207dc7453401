"""Memory search and diffusion against Sec. 3.2 and Eq. 4-7 in loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import fed_attention, fed_diffusion, fed_memory_search
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fed.tiny import build_fdm, to_numpy
from fed_plugin.diffusion import (
    CentreAttention,
    FeatureDiffusion,
    FeedForward,
    nearest_other_identities,
)


@pytest.mark.parametrize("number", [1, 2, 5, 6, 7, 50])
@pytest.mark.parametrize("identities", [[0], [3, 3, 6, 0]])
def test_search_equals_the_loop(number, identities):
    centres = torch.randn(7, 5, dtype=torch.float64)
    features = torch.randn(len(identities), 5, dtype=torch.float64)
    actual = nearest_other_identities(features, centres, torch.tensor(identities), number)
    for image, identity in enumerate(identities):
        expected = fed_memory_search(features[image].numpy(), centres.numpy(), identity, number)
        assert actual[image].tolist() == expected


def test_search_excludes_the_own_centre():
    centres = torch.randn(9, 6)
    actual = nearest_other_identities(centres, centres, torch.arange(9), 8)
    for identity, row in enumerate(actual.tolist()):
        assert sorted(row) == [other for other in range(9) if other != identity]


def test_single_identity_has_no_neighbors():
    actual = nearest_other_identities(
        torch.randn(3, 4), torch.randn(1, 4), torch.zeros(3).long(), 8
    )
    assert actual.shape == (3, 0)


def test_search_is_exact_under_autocast():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 64, generator=generator)
    centres = features + 0.02 * torch.randn(40, 64, generator=generator)  # cosines within 0.001
    labels = torch.tensor([0])
    expected = nearest_other_identities(features, centres, labels, 10)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_other_identities(features, centres, labels, 10), expected)


def projection_weights(attention: CentreAttention) -> dict[str, np.ndarray]:
    return {n: to_numpy(getattr(attention, n).weight) for n in ("query", "key", "value", "output")}


@pytest.mark.parametrize(
    ("batch", "dim", "heads", "neighbors"),
    [(1, 4, 1, 1), (3, 8, 2, 3), (2, 12, 4, 5), (2, 6, 6, 2), (2, 4, 2, 0)],
)
@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_attention_equals_eq_4_to_6(batch, dim, heads, neighbors, scale):
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
            features[image].numpy(), centres[rows[image]].numpy(), projection_weights(attention),
            heads, factor,
        )  # fmt: skip
        np.testing.assert_allclose(to_numpy(mixed[image]), expected, rtol=1e-9, atol=1e-12)


def test_attention_flops_are_independent_of_the_bank_size():
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
        "first": to_numpy(ffn.layers[0].weight), "first_bias": to_numpy(ffn.layers[0].bias),
        "second": to_numpy(ffn.layers[2].weight), "second_bias": to_numpy(ffn.layers[2].bias),
        "norm": to_numpy(ffn.norm.weight), "norm_bias": to_numpy(ffn.norm.bias),
    }  # fmt: skip


def random_fdm(dim: int, parts: int, **changed) -> FeatureDiffusion:
    diffusion = build_fdm(dim, parts, **changed).double()
    for parameter in diffusion.parameters():
        nn.init.normal_(parameter, std=0.7)
    return diffusion


@pytest.mark.parametrize(
    ("batch", "parts", "dim", "ratio"), [(1, 1, 4, 1), (3, 4, 4, 4), (2, 2, 6, 2)]
)
@pytest.mark.parametrize("normalize", [True, False])
def test_diffusion_equals_eq_7(batch, parts, dim, ratio, normalize):
    diffusion = random_fdm(dim, parts, ffn_ratio=ratio, normalize_centres=normalize)
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
            feature,
            nearest,
            projection_weights(diffusion.attention),
            2,
            1 / np.sqrt(parts * dim / 2),
        )
        expected = fed_diffusion(
            attended, feature, visibility[image].numpy(),
            ffn_weights(diffusion.first_ffn), ffn_weights(diffusion.second_ffn),
        )  # fmt: skip
        np.testing.assert_allclose(to_numpy(diffused[image]), expected, rtol=1e-9, atol=1e-12)


def test_invisible_parts_take_nothing_from_the_bank():
    """Visibility 0: f'_d = FFN_2(f'), whatever the bank holds; visibility 1 lets them in."""
    diffusion = random_fdm(4, 4)
    features = torch.randn(2, 16, dtype=torch.float64)
    identities = torch.tensor([0, 1])
    banks = torch.randn(2, 5, 16, dtype=torch.float64)
    hidden, seen = (torch.full((2, 4), value, dtype=torch.float64) for value in (0.0, 1.0))
    expected = diffusion.second_ffn(features.unflatten(1, (4, -1))).flatten(1)
    for bank in banks:
        torch.testing.assert_close(diffusion(features, hidden, identities, bank), expected)
    one, other = (diffusion(features, seen, identities, bank) for bank in banks)
    assert (one - other).abs().max() > 0.01


def test_images_in_a_batch_do_not_mix():
    """The authors' code swaps batch and heads, so that one row holds pieces of eight images."""
    diffusion = random_fdm(4, 4, num_heads=4)
    features = torch.randn(5, 16, dtype=torch.float64)
    visibility, identities = torch.rand(5, 4, dtype=torch.float64), torch.arange(5)
    centres = torch.randn(6, 16, dtype=torch.float64)
    whole = diffusion(features, visibility, identities, centres)
    for image in range(5):
        alone = slice(image, image + 1)
        one = diffusion(features[alone], visibility[alone], identities[alone], centres)
        torch.testing.assert_close(one, whole[alone])


def test_all_weights_get_a_gradient():
    diffusion = random_fdm(4, 4, neck=True)
    features = torch.randn(5, 16, dtype=torch.float64, requires_grad=True)
    visibility = torch.rand(5, 4, dtype=torch.float64, requires_grad=True)
    centres = torch.randn(6, 16, dtype=torch.float64)
    diffusion(features, visibility, torch.arange(5), centres).square().sum().backward()
    untrained = [n for n, p in diffusion.named_parameters() if p.requires_grad and p.grad is None]
    assert untrained == [] and visibility.grad is not None and features.grad is not None


def test_diffusion_gradcheck():
    diffusion = random_fdm(4, 2)  # a layer norm over two channels has no gradient to speak of
    centres, identities = torch.randn(5, 8, dtype=torch.float64), torch.tensor([0, 3])
    inputs = (
        torch.randn(2, 8, dtype=torch.float64, requires_grad=True),
        torch.rand(2, 2, dtype=torch.float64, requires_grad=True),
    )
    torch.autograd.gradcheck(lambda f, v: diffusion(f, v, identities, centres), inputs)
