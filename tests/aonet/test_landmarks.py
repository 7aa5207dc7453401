"""Responses, maps and visibility against Eq. 2-4 in loops, and where exponentials overflow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import aonet_algorithm_1, aonet_feature, aonet_standard_map

from aonet_plugin.landmarks import (
    landmark_responses,
    normalized_maps,
    pool_landmarks,
    referenced_maps,
    visibility_scores,
)
from occluded_reid.modeling.layers import to_feature_map

SHAPES = [  # B, P, C, H, W
    (1, 1, 1, 1, 1),
    (1, 1, 4, 3, 2),
    (2, 3, 5, 4, 2),
    (3, 6, 2, 2, 5),
    (1, 4, 8, 8, 4),
]


def random_inputs(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return features (B, C, H, W), patterns and memory (P, C)."""
    images, landmarks, channels, height, width = shape
    features = torch.randn(images, channels, height, width, dtype=torch.float64)
    patterns, memory = torch.randn(2, landmarks, channels, dtype=torch.float64)
    return features, patterns, memory


@pytest.mark.parametrize("shape", SHAPES)
def test_normalized_maps_and_slfea_equal_eq_2(shape):
    features, patterns, _ = random_inputs(shape)
    maps = normalized_maps(landmark_responses(features, patterns))
    pooled = pool_landmarks(features, maps)
    for image in range(shape[0]):
        for k in range(shape[1]):
            expected = aonet_standard_map(patterns[k].numpy(), features[image].numpy())
            np.testing.assert_allclose(maps[image, k], expected, rtol=1e-10)
            feature = aonet_feature(features[image].numpy(), expected)
            np.testing.assert_allclose(pooled[image, k], feature, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_oascore_and_referenced_maps_equal_eq_3_and_4(shape):
    features, patterns, memory = random_inputs(shape)
    responses = landmark_responses(features, patterns)
    visibility = visibility_scores(responses, (patterns * memory).sum(dim=1))
    maps = referenced_maps(normalized_maps(responses), visibility)
    beta, expected, pooled, _ = aonet_algorithm_1(
        features.numpy(), patterns.numpy(), memory.numpy(), 0.9
    )
    np.testing.assert_allclose(visibility, beta, rtol=1e-10)
    np.testing.assert_allclose(maps, expected, rtol=1e-10)
    np.testing.assert_allclose(pool_landmarks(features, maps), pooled, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 2), (16, 8)])
def test_zero_logits_share_equally(height, width):
    visibility = visibility_scores(torch.zeros(2, 3, height, width), torch.zeros(3))
    pixels = height * width
    torch.testing.assert_close(visibility, torch.full((2, 3), pixels / (pixels + 1)))


@pytest.mark.parametrize("pixels", [1, 4, 8])
def test_n_pixels_as_strong_as_the_memory_score_n_over_n_plus_1(pixels):
    """The memory holds peaks, so a landmark visible in one pixel reaches 1/2."""
    responses = torch.full((1, 1, 4, 2), -1e3)
    responses.view(-1)[:pixels] = 7.0
    visibility = visibility_scores(responses, torch.full((1,), 7.0))
    torch.testing.assert_close(visibility, torch.full((1, 1), pixels / (pixels + 1)))


def test_weak_pixels_score_zero():
    responses = torch.full((1, 1, 4, 2), -30.0)
    assert visibility_scores(responses, torch.zeros(1)) < 1e-11
    responses[..., 2, 1] = 30.0
    assert visibility_scores(responses, torch.zeros(1)) == 1


LOGITS = [-1e4, -100.0, 0.0, 100.0, 1e4]


@pytest.mark.parametrize("average", LOGITS)
@pytest.mark.parametrize("response", LOGITS)
def test_large_logits_do_not_overflow(response, average):
    """float32 overflows at exp(89), float16 at exp(12)."""
    responses = (response + torch.randn(2, 3, 4, 2)).requires_grad_()
    reference = torch.full((3,), average, requires_grad=True)
    visibility = visibility_scores(responses, reference)
    maps = referenced_maps(normalized_maps(responses), visibility)
    augmented = [responses.flatten(2).double(), reference.double()[:, None].expand(2, 3, 1)]
    shares = torch.cat(augmented, dim=2).softmax(dim=2)[..., :-1]  # Eq. 3 as it is printed
    torch.testing.assert_close(maps.flatten(2).double(), shares, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(visibility.double(), shares.sum(dim=2), rtol=1e-3, atol=1e-7)
    assert visibility.min() >= 0 and visibility.max() <= 1
    (maps.square().sum() + visibility.sum()).backward()
    assert responses.grad.isfinite().all() and reference.grad.isfinite().all()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(half):
    features, patterns = 20 * torch.randn(2, 64, 4, 2).to(half), torch.randn(3, 64)
    responses = landmark_responses(features.float(), patterns)
    pooled = pool_landmarks(features.float(), normalized_maps(responses))
    assert responses.abs().max() > 300
    with torch.autocast("cpu", half):
        actual = landmark_responses(features, patterns)
        visibility = visibility_scores(actual, torch.zeros(3))
        maps = referenced_maps(normalized_maps(actual), visibility)
        assert torch.equal(actual, responses)
        assert torch.equal(pool_landmarks(features, normalized_maps(actual)), pooled)
    assert {actual.dtype, visibility.dtype, maps.dtype} == {torch.float32}
    assert maps.isfinite().all()


def test_maps_gradcheck():
    features, patterns, memory = random_inputs((2, 2, 3, 2, 2))

    def pooled(features: torch.Tensor, patterns: torch.Tensor) -> torch.Tensor:
        responses = landmark_responses(features, patterns)
        visibility = visibility_scores(responses, (patterns * memory).sum(dim=1))
        return pool_landmarks(features, referenced_maps(normalized_maps(responses), visibility))

    inputs = (features.requires_grad_(), patterns.requires_grad_())
    torch.autograd.gradcheck(pooled, inputs)


def test_oafea_is_slfea_times_visibility():
    """The reference scales a map as a whole: it cannot move its maximum away from a false alarm."""
    features, patterns, memory = random_inputs((4, 6, 5, 4, 2))
    responses = landmark_responses(features, patterns)
    maps, visibility = normalized_maps(responses), visibility_scores(responses, memory[:, 0])
    standard = pool_landmarks(features, maps)
    aware = pool_landmarks(features, referenced_maps(maps, visibility))
    torch.testing.assert_close(aware, visibility[..., None] * standard)
    ones = torch.ones(4, 6, dtype=torch.float64)
    torch.testing.assert_close(F.cosine_similarity(aware, standard, dim=2), ones)


def test_to_feature_map():
    tokens = torch.arange(7.0)[None, :, None].expand(2, 7, 3)
    laid_out = to_feature_map(tokens, (3, 2))
    assert laid_out.shape == (2, 3, 3, 2)
    assert laid_out[1, 2].tolist() == [[1, 2], [3, 4], [5, 6]]
    maps = torch.randn(2, 3, 4, 2)
    assert to_feature_map(maps, None) is maps
    with pytest.raises(ValueError, match="attribute grid"):
        to_feature_map(tokens, None)
