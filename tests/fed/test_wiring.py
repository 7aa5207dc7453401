"""That the parts of FED are joined as the paper says: banks, gradients, keys, branches."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from reference import fed_memory_update

from fed.test_official import OFFICIAL
from fed.tiny import disable_dropout, fed_batch, fed_cfg, fed_model, to_numpy
from fed_plugin.head import FEDHead, PartErasing, erase
from fed_plugin.official import GatedFeedForward, OfficialAttention, contrast_with_epsilon
from occluded_reid.config import load_config
from occluded_reid.data.transforms.npo import build_npo
from occluded_reid.utils.errors import UserError


def test_each_bank_moves_towards_its_holistic_features():
    model, batch = disable_dropout(fed_model()), fed_batch()
    memories = ("erased_memory", "diffused_memory")
    before = [to_numpy(getattr(model, name).centres) for name in memories]
    twin = copy.deepcopy(model)
    parts = twin.part_features(torch.cat([batch["images"], batch["occluded_images"]]))
    diffused = twin.diffuse(parts, batch["targets"].repeat(2))
    model(batch)
    for name, centres, features in zip(memories, before, (parts.embedding, diffused), strict=True):
        expected = fed_memory_update(
            centres, to_numpy(features[:6]), batch["targets"].tolist(), 0.2
        )
        actual = to_numpy(getattr(model, name).centres)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_oem_learns_from_labels_identities_and_eq_7():
    model, batch = disable_dropout(fed_model()), fed_batch()
    views = model.views(batch)
    parts = model.part_features(views.images)
    losses = model.losses(views, parts, model.diffuse(parts, views.identities))
    weight = model.heads.erasing.scorers[0][0].weight
    for term in ("visibility_holistic", "visibility_occluded", "identity_erased_holistic"):
        (gradient,) = torch.autograd.grad(losses[f"loss_{term}"], weight, retain_graph=True)
        assert gradient.abs().max() > 1e-6, term
    scores = parts.visibility.detach().requires_grad_()
    diffused = model.diffuse(parts._replace(visibility=scores), views.identities)
    diffused.square()[:, 0].sum().backward()
    assert scores.grad.abs().max() > 1e-6


def test_erasing_gradcheck():
    erasing = PartErasing(dim=8, num_parts=2).double()
    parts = torch.randn(2, 2, 8, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda p: erase(p, erasing(p)), (parts,))


def test_every_key_reaches_the_model():
    values = {
        "NUM_NEIGHBORS": 5, "NUM_HEADS": 2, "ATTENTION_SCALE": 0.3, "NORMALIZE_CENTRES": False,
        "FFN_RATIO": 2, "MEMORY_MOMENTUM": 0.7, "TEMPERATURE": 0.2, "VISIBILITY_WEIGHT": 0.1,
        "IDENTITY_WEIGHT": 0.3, "CONTRAST_WEIGHT": 0.4, "NECK_FIRST": True,
        "TEST_BEFORE_NECK": True, "CONCATENATE_CLASS_TOKEN": True, "PART_POOLING": "max",
        "ERASING_BIAS": False, "NORMALIZE_MEMORY": True,
    }  # fmt: skip
    words = [word for key, value in values.items() for word in (f"MODEL.FED.{key}", value)]
    model = fed_model(*words)
    diffusion, attention = model.diffusion, model.diffusion.attention
    assert list(values.values()) == [
        diffusion.num_neighbors, attention.num_heads, attention.scale, diffusion.normalize_centres,
        diffusion.second_ffn.layers[0].out_features / 16, model.diffused_memory.momentum,
        model.temperature, *(model.weights[k] for k in ("visibility", "identity", "contrast")),
        model.heads.neck_first, model.test_before_neck, model.concatenate_class_token,
        model.heads.pooling, model.heads.erasing.scorers[0][2].bias is not None,
        model.erased_memory.normalize,
    ]  # fmt: skip
    assert diffusion.first_ffn is not diffusion.second_ffn


def test_every_key_reaches_the_augmentation():
    values = {
        "PROB": 0.3, "VERTICAL_RATIO": 2.0, "EXTENT": [0.1, 0.2], "CROP": 0.7, "FLIP": 0.1,
        "JITTER": [0.1, 0.2, 0.3], "JITTER_VERTICAL": False, "NUM_STRIPES": 6, "COVERED": 0.9,
    }  # fmt: skip
    words = [str(w) for key, value in values.items() for w in (f"INPUT.NPO.{key}", value)]
    npo = build_npo(load_config("", ["INPUT.NPO.ENABLED", "True", *words]))
    for key, value in values.items():
        assert getattr(npo, key.lower()) == value, key


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("NUM_HEADS", 7, "a divisor of NUM_PARTS x channels = 64"),
        ("NUM_HEADS", 0, "a divisor"),
        ("NUM_PARTS", 0, "at least 1"),
        ("PART_POOLING", "sum", "mean or max"),
        ("NUM_NEIGHBORS", -1, "at least 1"),
        ("FFN_RATIO", 0, "at least 1"),
        ("TEMPERATURE", 0.0, "above 0"),
        ("MEMORY_MOMENTUM", 1.5, r"in \[0, 1\]"),
    ],
)
def test_value_out_of_range_raises(key, value, wanted):
    with pytest.raises(UserError, match=f"MODEL.FED.{key} is {value}; it must be {wanted}"):
        fed_model(f"MODEL.FED.{key}", value)


def test_embedding_before_the_neck():
    batch = fed_batch()
    for neck_first in (False, True):
        words = ("MODEL.FED.TEST_BEFORE_NECK", True, "MODEL.FED.NECK_FIRST", neck_first)
        model = disable_dropout(fed_model(*words))
        model(batch)  # the neck's statistics are no longer 0 and 1
        model.eval()
        parts = model.part_features(batch["images"])
        torch.testing.assert_close(model(batch).features, parts.erased)
        assert not torch.allclose(parts.erased.flatten(1), parts.embedding, rtol=0.1)


def test_images_are_normalized():
    model, batch = (
        disable_dropout(fed_model("MODEL.PIXEL_MEAN", [9.0, 8.0, 7.0])).eval(),
        fed_batch(),
    )
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ([9.0, 8.0, 7.0], fed_std()))
    expected = model.heads(model.backbone((batch["images"] - mean) / std)).embedding
    torch.testing.assert_close(model(batch).features.flatten(1), expected)


def fed_std() -> list[float]:
    return list(fed_cfg().MODEL.PIXEL_STD)


def test_official_branches_are_separate():
    """Separate statistics; images mix within a branch; erased features are written last."""
    model, batch = disable_dropout(fed_model(*OFFICIAL)), fed_batch()
    diffusion = model.diffusion
    assert type(diffusion.attention) is OfficialAttention and diffusion.attention.scale == 0.5
    assert type(diffusion.first_ffn) is type(diffusion.second_ffn) is GatedFeedForward
    assert model.contrast_loss is contrast_with_epsilon
    twin = copy.deepcopy(model)
    labels, centres = batch["targets"], twin.erased_memory.centres
    wanted = []
    for view in ("images", "occluded_images"):
        tokens = twin.backbone((batch[view] - twin.normalization.mean) / twin.normalization.std)
        parts = FEDHead.forward(twin.heads, tokens)
        diffused = twin.diffusion(parts.embedding, parts.visibility, labels, centres)
        wanted.append((parts.embedding, diffused))
    views = model.views(batch)
    parts = model.part_features(views.images)
    torch.testing.assert_close(parts.embedding, torch.cat([each[0] for each in wanted]))
    diffused = model.diffuse(parts, views.identities)
    torch.testing.assert_close(diffused, torch.cat([each[1] for each in wanted]))
    model.update_memories(parts.embedding, diffused, labels)
    expected = to_numpy(centres)
    for features in (diffused, parts.embedding):
        for feature, identity in zip(to_numpy(features[:6]), labels.tolist(), strict=True):
            expected[identity] = 0.2 * expected[identity] + 0.8 * feature
    actual = to_numpy(model.erased_memory.centres)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
