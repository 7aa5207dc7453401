"""FEDOfficial: each way in which it leaves the paper, against a loop or by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from fed.tiny import PARTS, fed_batch, fed_model, to_numpy
from fed_plugin.hooks import fill_memories
from fed_plugin.losses import Term
from fed_plugin.meta_arch import BRANCHES
from fed_plugin.official import (
    GatedFeedForward,
    OfficialAttention,
    SequentialMemory,
    contrast_with_epsilon,
    labels_from_difference,
)
from occluded_reid.utils.errors import UserError

OFFICIAL = ("MODEL.META_ARCHITECTURE", "FEDOfficial", "MODEL.FED.ATTENTION_SCALE", 0.5)


@pytest.mark.parametrize(
    ("differences", "labels"),
    [
        ([0, 0, 0, 0], [1, 1, 1, 1]),
        ([5, 1, 1, 1], [1, 1, 1, 1]),  # all four: a vertical occluder
        ([0, 0, 7, 0], [1, 1, 0, 1]),
        ([0, 9, 3, 0], [1, 0, 0, 1]),  # exactly three times: both
        ([0, 9, 2.9, 0], [1, 0, 1, 1]),
        ([8, 2, 2, 0], [0, 1, 1, 1]),
        ([4, 4, 4, 0], [0, 0, 0, 1]),
    ],
)
def test_labels_from_difference(differences, labels):
    images = torch.rand(1, 3, 16, 4).double()
    shift = torch.tensor(differences).double().repeat_interleave(4)[None, None, :, None]
    images, shift = torch.full_like(images, 100.0), shift.expand_as(images)
    assert labels_from_difference(images, images + shift, PARTS).tolist() == [labels]
    assert labels_from_difference(images, images - shift, PARTS).tolist() == [labels]


@pytest.mark.parametrize("momentum", [0.0, 0.2, 0.7])
def test_sequential_memory_equals_the_loop(momentum):
    memory = SequentialMemory(num_identities=4, dim=3, momentum=momentum)
    start, identities = torch.randn(4, 3), [1, 3, 1, 1, 0, 3]
    memory.initialize(start, torch.arange(4))
    features = torch.randn(6, 3)
    memory.update(features, torch.tensor(identities))
    expected = to_numpy(start)
    for feature, identity in zip(to_numpy(features), identities, strict=True):
        expected[identity] = momentum * expected[identity] + (1 - momentum) * feature
    np.testing.assert_allclose(to_numpy(memory.centres), expected, rtol=1e-5, atol=1e-6)
    before = memory.centres.clone()
    with torch.no_grad():
        memory.update(features, torch.tensor(identities))
    memory.eval().update(features, torch.tensor(identities))
    assert torch.equal(memory.centres, before)


def test_contrast_with_epsilon_is_bounded():
    centres = torch.eye(3)
    features = torch.tensor([[1.0, 0.1, 0.0], [0.3, 0.5, 0.9]])
    expected = 0.0
    for feature, identity in zip(to_numpy(features), (1, 2), strict=True):
        exponentials = [math.exp(value / np.linalg.norm(feature) / 0.5) for value in feature]
        expected -= math.log(exponentials[identity] / (sum(exponentials) + 1e-6) + 1e-6) / 2
    loss = contrast_with_epsilon(features, centres, torch.tensor([1, 2]), 0.5)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    hard = contrast_with_epsilon(features[:1], centres, torch.tensor([2]), 0.05)
    assert hard.item() == pytest.approx(-math.log(1e-6), abs=0.01)
    opposite = contrast_with_epsilon(-centres[:1], centres[:1], torch.tensor([0]), 0.05)
    share = math.exp(-20) / (math.exp(-20) + 1e-6)
    assert opposite.item() == pytest.approx(-math.log(share + 1e-6), rel=1e-4)


def test_official_attention_swaps_batch_and_heads():
    attention = OfficialAttention(dim=6, num_heads=3, scale=1.0, output_bias=True)
    features, centres = torch.randn(4, 6), torch.randn(5, 6)
    neighbors = torch.randint(0, 5, (4, 2))
    mixed = attention.attend(features, centres, neighbors)  # (4 images, 3 heads, 2)
    runs = [mixed[image, head] for head in range(3) for image in range(4)]
    expected = torch.stack([torch.cat(runs[3 * row : 3 * row + 3]) for row in range(4)])
    torch.testing.assert_close(
        attention(features, centres, neighbors),
        expected @ attention.output.weight.T + attention.output.bias,
    )


def test_gated_feed_forward():
    ffn = GatedFeedForward(dim=4, ratio=2)
    parts = torch.randn(3, 4)
    hidden = nn.functional.layer_norm(parts, (4,)) @ ffn.expand.weight.T + ffn.expand.bias
    gated = hidden[:, :8] * nn.functional.gelu(hidden[:, 8:])
    torch.testing.assert_close(ffn(parts), gated @ ffn.contract.weight.T + ffn.contract.bias)


def test_official_weights_bank_neck_and_token():
    model, batch = fed_model(*OFFICIAL), fed_batch()
    model.backbone.dropout.p = 0.0
    assert model.erased_memory is model.diffused_memory
    assert model.diffusion.neck is model.heads.neck
    tokens = torch.randn(4, 9, 16)
    assert torch.equal(model.heads(tokens).class_token, tokens[:, 1])
    kinds = (("visibility", ""), ("identity", "erased"), ("contrast", "erased"),
             ("contrast", "diffused"))  # fmt: skip
    terms = {Term(*kind, branch): torch.tensor(1.0) for kind in kinds for branch in BRANCHES}
    weights = [float(value) for value in model.weight_terms(terms, {}).values()]
    assert weights == pytest.approx([1, 1, 0.5, 0.5, 1, 0.3, 0.5, 0.5])
    assert len(model(batch)) == 12


def test_every_weight_gets_a_gradient():
    model = fed_model(*OFFICIAL)
    sum(model(fed_batch()).values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_official_labels_ignore_the_augmentation():
    model, batch = fed_model(*OFFICIAL), fed_batch()
    batch["occluded_images"] = batch["images"].clone()
    batch["occluded_images"][:, :, :8] += 50
    batch["part_visibility"] = torch.zeros(6, PARTS)
    visible = model.views(batch).visible
    assert visible[:6].all() and visible[6:].tolist() == 6 * [[0, 1, 1, 1]]


def test_one_bank_is_filled_with_erased_features():
    model = fed_model(*OFFICIAL, filled=False).eval()
    batch = {"images": fed_batch(8)["images"], "targets": torch.arange(8)}
    fill_memories(model, [batch], 3)
    expected = model.part_features(batch["images"]).embedding
    torch.testing.assert_close(model.diffused_memory.centres, expected)
    assert model.train()(fed_batch())


def test_unsupported_settings_raise(monkeypatch):
    with pytest.raises(UserError, match=r"MODEL.FED.ERASING must be True"):
        fed_model(*OFFICIAL, "MODEL.FED.ERASING", False)
    with pytest.raises(UserError, match="needs a backbone of tokens"):
        fed_model(*OFFICIAL, "MODEL.BACKBONE.NAME", "build_tiny_map_backbone")
    with pytest.raises(UserError, match=r"MODEL.FED.NECK_FIRST must be False"):
        fed_model(*OFFICIAL, "MODEL.FED.NECK_FIRST", True)
    with pytest.raises(UserError, match="trains on pairs: INPUT.NPO"):
        fed_model(*OFFICIAL)(fed_batch(pairs=False))
    monkeypatch.setattr("fed_plugin.official.comm.get_world_size", lambda: 2)
    with pytest.raises(UserError, match="in one process"):
        fed_model(*OFFICIAL)
