"""Part pooling, erasing and neck against Eq. 1 in loops, and their limiting cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import fed_erasing, fed_part_pooling
from torch import nn

from fed.tiny import to_numpy
from fed_plugin.head import FEDHead, PartErasing, erase, pool_stripes
from occluded_reid.modeling.layers import build_neck, split_tokens
from occluded_reid.utils.errors import UserError


@pytest.mark.parametrize(
    ("rows", "columns", "parts", "channels"),
    [(4, 2, 4, 3), (8, 1, 4, 1), (6, 3, 2, 5), (3, 1, 1, 2), (16, 8, 4, 4)],
)
def test_pool_stripes_equals_the_loop(rows, columns, parts, channels):
    tokens = torch.randn(2, rows * columns, channels, dtype=torch.float64)
    pooled = pool_stripes(tokens, rows, parts)
    for image in range(2):
        expected = fed_part_pooling(tokens[image].numpy(), rows, columns, parts)
        np.testing.assert_allclose(pooled[image], expected, rtol=1e-12, atol=1e-14)


def test_max_pooling():
    tokens = torch.randn(2, 8 * 2, 3)
    pooled = pool_stripes(tokens, 8, 4, "max")
    assert torch.equal(pooled[:, 1], tokens[:, 4:8].max(dim=1).values)


def test_feature_map_is_split_by_rows_and_averaged():
    maps = torch.randn(2, 3, 8, 5)
    whole, tokens, rows = split_tokens(maps, None)
    pooled = pool_stripes(tokens, rows, 4)
    torch.testing.assert_close(whole, maps.mean(dim=(2, 3)))
    torch.testing.assert_close(pooled[:, 3], maps[:, :, 6:].mean(dim=(2, 3)))


def test_class_token_is_token_0():
    features = torch.randn(2, 9, 3)
    whole, tokens, rows = split_tokens(features, (4, 2))
    assert rows == 4 and torch.equal(whole, features[:, 0])
    assert torch.equal(tokens, features[:, 1:])


def test_rows_that_do_not_divide_raise():
    with pytest.raises(UserError, match="7 rows of features cannot be cut into 4 equal stripes"):
        pool_stripes(torch.zeros(1, 14, 2), 7, 4)


def scorer_weights(scorer: nn.Sequential) -> dict[str, np.ndarray]:
    return {
        "cp": to_numpy(scorer[0].weight), "cp_bias": to_numpy(scorer[0].bias),
        "norm": to_numpy(scorer[1].weight), "norm_bias": to_numpy(scorer[1].bias),
        "rg": to_numpy(scorer[2].weight), "rg_bias": to_numpy(scorer[2].bias),
    }  # fmt: skip


@pytest.mark.parametrize(("batch", "parts", "channels"), [(1, 1, 4), (3, 4, 8), (2, 6, 12)])
def test_erasing_equals_eq_1(batch, parts, channels):
    erasing = PartErasing(dim=channels, num_parts=parts).double()
    for parameter in erasing.parameters():
        nn.init.normal_(parameter)
    features = torch.randn(batch, parts, channels, dtype=torch.float64)
    visibility = erasing(features)
    erased = erase(features, visibility)
    weights = [scorer_weights(scorer) for scorer in erasing.scorers]
    for image in range(batch):
        scores, expected = fed_erasing(features[image].numpy(), weights)
        np.testing.assert_allclose(to_numpy(visibility[image]), scores, rtol=1e-10)
        np.testing.assert_allclose(to_numpy(erased[image]), expected, rtol=1e-10)


@pytest.mark.parametrize(("logit", "kept"), [(200.0, 1.0), (-200.0, 0.0)])
def test_erasing_keeps_visible_parts_and_zeroes_occluded_ones(logit, kept):
    erasing = PartErasing(dim=8, num_parts=4)
    for scorer in erasing.scorers:
        nn.init.constant_(scorer[2].bias, logit)
    features = torch.randn(3, 4, 8)
    visibility = erasing(features)
    assert torch.equal(visibility, torch.full((3, 4), kept))
    torch.testing.assert_close(erase(features, visibility), kept * features, rtol=0, atol=0)


@pytest.mark.parametrize("neck_first", [False, True])
def test_neck_position(neck_first):
    head = FEDHead(dim=8, num_parts=4, grid=(4, 2), erasing=True, neck=True, neck_first=neck_first)
    features = 3 + torch.randn(6, 9, 8)
    pooled = pool_stripes(features[:, 1:], 4, 4)
    actual = head(features)
    if neck_first:
        expected = erase(head.neck(pooled.flatten(1)).view(6, 4, 8), actual.visibility).flatten(1)
    else:
        expected = head.neck(erase(pooled, actual.visibility).flatten(1))
    torch.testing.assert_close(actual.embedding, expected)


def test_only_a_neck_before_erasing_keeps_erased_parts_at_zero():
    features = 3 + torch.randn(6, 9, 8)  # far from zero, as after a ReLU
    for neck_first, vanishes in ((True, True), (False, False)):
        head = FEDHead(
            dim=8, num_parts=4, grid=(4, 2), erasing=True, neck=True, neck_first=neck_first
        )
        head(features)  # batch statistics
        for scorer in head.erasing.scorers:
            nn.init.constant_(scorer[2].bias, -200.0)
        assert bool((head.eval()(features).embedding == 0).all()) == vanishes


def test_without_erasing_every_part_is_visible():
    head = FEDHead(dim=8, num_parts=4, grid=(4, 2), erasing=False, neck=False)
    features = torch.randn(2, 9, 8)
    parts = head(features)
    assert torch.equal(parts.visibility, torch.ones(2, 4))
    assert torch.equal(parts.embedding, pool_stripes(features[:, 1:], 4, 4).flatten(1))
    assert not list(head.parameters())


def test_one_neck_equals_one_neck_per_part():
    features = torch.randn(5, 4, 3)
    neck = build_neck(12, True)
    per_part = [nn.BatchNorm1d(3) for _ in range(4)]
    with torch.no_grad():
        neck.weight.normal_()
        for part, own in enumerate(per_part):
            own.weight.copy_(neck.weight.view(4, 3)[part])
    expected = torch.stack([own(features[:, part]) for part, own in enumerate(per_part)], dim=1)
    torch.testing.assert_close(neck(features.flatten(1)), expected.flatten(1))
    assert not neck.bias.requires_grad and neck.weight.requires_grad


def test_batch_of_one_in_evaluation():
    head = FEDHead(dim=8, num_parts=4, grid=(4, 2), erasing=True, neck=True).eval()
    features = torch.randn(3, 9, 8)
    torch.testing.assert_close(head(features[:1]).embedding, head(features).embedding[:1])


def test_visibility_is_float32_under_autocast():
    head = FEDHead(dim=8, num_parts=4, grid=(4, 2), erasing=True, neck=True)
    with torch.autocast("cpu", torch.bfloat16):
        parts = head(torch.randn(3, 9, 8).bfloat16())
    assert parts.visibility.dtype == torch.float32
    assert parts.embedding.dtype == torch.float32
