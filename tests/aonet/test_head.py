"""Self-attention and neck against loops, and their limiting cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import aonet_algorithm_1, aonet_attention
from tiny_runs import to_numpy
from torch import nn

from aonet_plugin.attention import GatedAttention, MultiHeadAttention, build_attention
from aonet_plugin.head import AONetHead, init_patterns
from aonet_plugin.landmarks import landmark_responses, visibility_scores
from aonet_plugin.memory import LandmarkMemory
from occluded_reid.modeling.layers import build_neck


def build_head(landmarks: int = 3, dim: int = 4, *, memory: bool = True, **changed) -> AONetHead:
    held = LandmarkMemory(num_landmarks=landmarks, dim=dim, momentum=0.9) if memory else None
    if held is not None:
        held.features.normal_()
    arguments = {
        "attention": None, "grid": None, "occlusion_aware": True, "weighting": "awareness",
        "neck": False, **changed,
    }  # fmt: skip
    return AONetHead(patterns=torch.randn(landmarks, dim), memory=held, **arguments)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 3, 4, 4, 2), (3, 6, 5, 2, 3)])
def test_head_equals_algorithm_1(shape):
    images, landmarks, channels, height, width = shape
    head = build_head(landmarks, channels).double()
    features = torch.randn(images, channels, height, width, dtype=torch.float64)
    actual = head(features)
    beta, maps, pooled, _ = aonet_algorithm_1(
        features.numpy(), to_numpy(head.patterns), to_numpy(head.memory.features), 0.9
    )
    np.testing.assert_allclose(to_numpy(actual.visibility), beta, rtol=1e-10)
    np.testing.assert_allclose(to_numpy(actual.maps), maps, rtol=1e-10)
    np.testing.assert_allclose(to_numpy(actual.pooled[0]), pooled, rtol=1e-10, atol=1e-12)
    assert torch.equal(actual.pooled, actual.normed)  # no block, no neck


def test_ablation_weightings():
    features = torch.randn(2, 4, 4, 2)
    head = build_head()
    aware = head(features)
    head.weighting = "none"  # AONet-dagger: OA features, no score
    plain = head(features)
    assert torch.equal(plain.visibility, torch.ones(2, 3)) and torch.equal(plain.maps, aware.maps)
    head.weighting = "maximum"  # Base_Max: of Eq. 2, without the memory
    highest = head(features)
    expected = aware.responses.flatten(2).softmax(dim=2).amax(dim=2)
    torch.testing.assert_close(highest.visibility, expected)
    assert torch.equal(highest.maps, aware.maps)
    head.weighting, head.occlusion_aware = "awareness", False  # SL features, weighted all the same
    scored = head(features)
    assert torch.equal(scored.visibility, aware.visibility)
    torch.testing.assert_close(scored.maps.sum(dim=(2, 3)), torch.ones(2, 3))
    head.memory, head.weighting, head.occlusion_aware = None, "none", False  # Base_SLFea
    standard = head(features)
    torch.testing.assert_close(standard.maps.sum(dim=(2, 3)), torch.ones(2, 3))
    assert torch.equal(standard.visibility, torch.ones(2, 3))


def test_zero_pattern_is_global_average_pooling():
    head = build_head(1, memory=False, occlusion_aware=False, weighting="none")
    nn.init.zeros_(head.patterns)
    features = torch.randn(2, 4, 4, 2)
    torch.testing.assert_close(head(features).pooled[0, :, 0], features.mean(dim=(2, 3)))


def test_average_response_has_the_patterns_gradient():
    head, features = build_head(), torch.randn(2, 4, 4, 2)
    head(features).visibility.sum().backward()
    patterns = head.patterns.detach().clone().requires_grad_()
    responses = landmark_responses(features, patterns)
    average = (patterns * head.memory.features).sum(dim=1)
    visibility_scores(responses, average).sum().backward()
    torch.testing.assert_close(head.patterns.grad, patterns.grad)
    assert not head.memory.features.requires_grad
    head.patterns.grad, head.detach_average = None, True
    head(features).visibility.sum().backward()
    patterns.grad = None
    responses = landmark_responses(features, patterns)
    visibility_scores(responses, average.detach()).sum().backward()
    torch.testing.assert_close(head.patterns.grad, patterns.grad)
    assert dict(head.named_parameters()).keys() == {"patterns"}


@pytest.mark.parametrize(("landmarks", "dim", "reduction"), [(1, 2, 1), (3, 8, 8), (6, 6, 2)])
def test_gated_attention_equals_the_loop(landmarks, dim, reduction):
    block = GatedAttention(dim=dim, reduction=reduction).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    features = torch.randn(2, landmarks, dim, dtype=torch.float64)
    weights = {}
    for name in ("query", "key", "value"):
        layer = getattr(block, name)
        weights |= {name: to_numpy(layer.weight), f"{name}_bias": to_numpy(layer.bias)}
    actual = block(features)
    for image in range(2):
        expected = aonet_attention(features[image].numpy(), weights, block.gate.item())
        np.testing.assert_allclose(to_numpy(actual[image]), expected, rtol=1e-9, atol=1e-12)


def test_gate_starts_at_zero_and_learns():
    block, features = GatedAttention(dim=8, reduction=8), torch.randn(2, 3, 8)
    assert torch.equal(block(features), features)
    block(features).square().sum().backward()
    assert block.gate.grad.abs() > 0
    assert block.query.weight.shape == block.key.weight.shape == (1, 8)


def test_attention_does_not_mix_images():
    features = torch.randn(4, 3, 8)
    for block in (GatedAttention(dim=8, reduction=2), MultiHeadAttention(dim=8, num_heads=2)):
        if isinstance(block, GatedAttention):
            nn.init.ones_(block.gate)
        whole = block(features)
        torch.testing.assert_close(block(features[2:3]), whole[2:3])
        assert (whole - features).abs().max() > 0.01


def test_build_attention():
    built = {
        kind: build_attention(kind, dim=8, reduction=4, num_heads=2)
        for kind in ("sagan", "multi_head", "none")
    }
    assert isinstance(built["sagan"], GatedAttention) and built["none"] is None
    assert built["multi_head"].attention.num_heads == 2


def test_neck_shares_statistics():
    block = GatedAttention(dim=4, reduction=1)
    nn.init.ones_(block.gate)
    head = build_head(attention=block, neck=True).train()
    actual = head(torch.randn(5, 4, 4, 2))
    assert actual.normed.shape == (2, 5, 3, 4)
    rows = actual.pooled.flatten(0, 2)
    expected = (rows - rows.mean(dim=0)) / (rows.var(dim=0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(actual.normed.flatten(0, 2), expected, rtol=1e-4, atol=1e-5)
    assert not head.neck.bias.requires_grad and head.neck.weight.requires_grad
    assert head.neck.weight.shape == (4,)
    assert isinstance(build_neck(4, False), nn.Identity)


@pytest.mark.parametrize(
    ("kind", "scale"), [("uniform", 1.0), ("orthogonal", 1.0), ("orthogonal", 4)]
)
def test_init_patterns(kind, scale):
    patterns = init_patterns(6, 512, kind, scale)
    products = patterns @ patterns.T / scale**2
    if kind == "orthogonal":
        torch.testing.assert_close(products, torch.eye(6), rtol=0, atol=1e-5)
    else:
        convolution = nn.Conv2d(512, 6, 1, bias=False).weight
        assert patterns.abs().max() <= 512**-0.5 and convolution.abs().max() <= 512**-0.5
        assert patterns.std().item() == pytest.approx(convolution.std().item(), rel=0.1)
        assert products.diagonal().mean().sqrt().item() == pytest.approx(0.58, abs=0.03)


@pytest.mark.parametrize("landmarks", [1, 3])
def test_batch_of_one(landmarks):
    block = GatedAttention(dim=4, reduction=2)
    head = build_head(landmarks, attention=block, neck=True)
    features = torch.randn(3, 4, 4, 2)
    assert head.train()(features[:1]).normed.isfinite().all()
    whole, alone = head.eval()(features), head(features[:1])
    for field, value in alone._asdict().items():
        images = getattr(whole, field)
        first = images[:, :1] if field in ("pooled", "normed") else images[:1]
        torch.testing.assert_close(value, first, msg=field)


def test_attention_does_not_overflow_in_float16():
    block = GatedAttention(dim=2048, reduction=8)
    nn.init.ones_(block.gate)
    landmarks = 3000 * torch.rand(2, 6, 2048)
    products = block.query(landmarks) @ block.key(landmarks).transpose(1, 2)
    assert products.abs().max() > torch.finfo(torch.float16).max
    with torch.autocast("cpu", torch.float16):
        actual = block(landmarks)
    assert actual.isfinite().all()


def test_head_is_float32_under_autocast():
    block = GatedAttention(dim=16, reduction=2)
    nn.init.ones_(block.gate)
    head = build_head(dim=16, attention=block, neck=True)
    features = torch.randn(3, 16, 4, 2).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        actual = head(features)
    expected = head(features.float())
    for field in ("responses", "maps", "visibility", "pooled", "normed"):
        assert getattr(actual, field).dtype == torch.float32, field
    torch.testing.assert_close(actual.visibility, expected.visibility)
    similar = F.cosine_similarity(actual.pooled, expected.pooled, dim=3)
    assert similar.min() > 0.999
