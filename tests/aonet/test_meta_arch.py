"""The whole model: Eq. 7 from its parts, the collapse of Eq. 5, switches, what inference needs."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from fastreid.modeling.meta_arch import build_model
from reference import (
    aonet_algorithm_1,
    aonet_attention,
    aonet_identity,
    aonet_landmark_logits,
    aonet_orthogonal,
    aonet_overlap,
    aonet_similarity,
    aonet_total,
)
from tiny_runs import DIM, to_numpy
from torch import nn

from aonet.tiny import IDENTITIES, LANDMARKS, aonet_batch, aonet_cfg, aonet_model
from aonet_plugin.landmarks import normalized_maps
from aonet_plugin.losses import landmark_triplet_loss
from aonet_plugin.meta_arch import build_map_backbone
from occluded_reid.deploy.complexity import measure_complexity
from occluded_reid.engine.optimizer import build_optimizer
from occluded_reid.modeling.similarity import make_rows
from occluded_reid.utils.errors import UserError

TERMS = {"loss_identity_before", "loss_identity_after", "loss_orthogonal"}
WITHOUT_NECK = ("MODEL.AONET.NECK", False)
ROWS = {  # of Table 4 and 5, as switches
    "base_slfea": (
        "MODEL.AONET.OCCLUSION_AWARE_FEATURES", False, "MODEL.AONET.VISIBILITY", "none",
        "MODEL.AONET.SELF_ATTENTION", "none",
    ),
    "aonet_dagger": ("MODEL.AONET.VISIBILITY", "none"),
    "base_max": ("MODEL.AONET.VISIBILITY", "maximum"),
    "multi_head": ("MODEL.AONET.SELF_ATTENTION", "multi_head"),
    "per_landmark": ("MODEL.AONET.CLASSIFIERS", "per_landmark"),
}  # fmt: skip


def backbone_features(model, images: torch.Tensor) -> torch.Tensor:
    return model.backbone((images - model.normalization.mean) / model.normalization.std)


def block_weights(block: nn.Module) -> dict[str, np.ndarray]:
    weights = {}
    for name in ("query", "key", "value"):
        layer = getattr(block, name)
        weights |= {name: to_numpy(layer.weight), f"{name}_bias": to_numpy(layer.bias)}
    return weights


def paper_losses(model, images: torch.Tensor) -> tuple[np.ndarray, ...]:
    """Return beta (B, K), features before and after the block (B, K, C), and the updated memory."""
    beta, _, before, memory = aonet_algorithm_1(
        to_numpy(backbone_features(model, images)), to_numpy(model.heads.patterns),
        to_numpy(model.heads.memory.features), 0.9,
    )  # fmt: skip
    block, weights = model.heads.attention, block_weights(model.heads.attention)
    after = np.stack([aonet_attention(f, weights, block.gate.item()) for f in before])
    return beta, before, after, memory


@pytest.mark.parametrize("classifiers", ["shared", "per_landmark"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_terms_equal_eq_7_and_memory_eq_1(classifiers, reduction):
    model = aonet_model(
        *WITHOUT_NECK, "MODEL.AONET.CLASSIFIERS", classifiers,
        "MODEL.AONET.ORTHOGONAL_REDUCTION", reduction,
    )  # fmt: skip
    batch = aonet_batch()
    nn.init.normal_(model.classifier.weight)
    beta, before, after, memory = paper_losses(copy.deepcopy(model), batch["images"])
    weight, labels = to_numpy(model.classifier.weight), batch["targets"].tolist()
    if classifiers == "shared":
        weight = weight[:, None].repeat(LANDMARKS, axis=1)
    logits = [aonet_landmark_logits(stage, weight) for stage in (before, after)]
    identity = [aonet_identity(of_stage, labels, beta) for of_stage in logits]
    orthogonal = aonet_orthogonal(before, summed=reduction == "sum")
    losses = model(batch)
    assert set(losses) == TERMS
    assert losses["loss_identity_before"].item() == pytest.approx(identity[0], rel=1e-4)
    assert losses["loss_identity_after"].item() == pytest.approx(identity[1], rel=1e-4)
    assert losses["loss_orthogonal"].item() == pytest.approx(0.01 * orthogonal, rel=1e-4)
    expected = aonet_total(*identity, orthogonal, 0.01)
    assert sum(losses.values()).item() == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(to_numpy(model.heads.memory.features), memory, rtol=1e-3, atol=1e-5)


def test_temperature_divides_the_logits():
    """Eq. 2 to 4 with ``phi = exp(i . F / T)``: as if the patterns were scaled, which they stay."""
    batch, plain, warm = aonet_batch(), aonet_model(), aonet_model("MODEL.AONET.TEMPERATURE", 4.0)
    assert torch.equal(plain.heads.patterns, warm.heads.patterns)
    with torch.no_grad():
        plain.heads.patterns.div_(4)
    expected, actual = (model.landmarks(batch["images"]) for model in (plain, warm))
    for field, value in expected._asdict().items():
        torch.testing.assert_close(getattr(actual, field), value, msg=field)
    assert set(warm.state_dict()) == set(plain.state_dict())


@pytest.mark.parametrize("stage", ["before", "after"])
def test_inner_product_of_rows_equals_eq_8(stage):
    model = aonet_model(*WITHOUT_NECK, "MODEL.AONET.TEST_FEATURE", stage).eval()
    batch = aonet_batch()
    beta, before, after, _ = paper_losses(model, batch["images"])
    features = before if stage == "before" else after
    outputs = model(batch)
    rows = make_rows(outputs, "dot")
    similarities = to_numpy(rows @ rows.T)
    for one in range(6):
        for other in range(6):
            expected = aonet_similarity((features[one], features[other]), (beta[one], beta[other]))
            assert similarities[one, other] == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(to_numpy(outputs.visibility), beta, rtol=1e-4)


def test_norm_of_a_row_is_its_visibility():
    model, batch = aonet_model().eval(), aonet_batch()
    outputs = model(batch)
    expected = outputs.visibility.square().mean(dim=1).sqrt()
    torch.testing.assert_close(make_rows(outputs, "dot").norm(dim=1), expected)
    assert expected.std() > 0.01


def change_by_training_patterns(*, detach: bool) -> tuple[float, float]:
    """Train the patterns alone on Eq. 5; return the ratios of its value and of visibility."""
    model = aonet_model(
        "MODEL.AONET.DETACH_VISIBILITY", detach, "MODEL.AONET.ORTHOGONAL_WEIGHT", 0.0,
        "MODEL.AONET.MEMORY_MOMENTUM", 1.0,
    )  # fmt: skip
    batch = aonet_batch(8)
    optimizer = torch.optim.Adam([model.heads.patterns], lr=0.05)
    values, seen = [], []
    for step in range(31):
        if step in (0, 30):
            seen.append(model.landmarks(batch["images"]).visibility.mean().item())
        values.append(sum(model(batch).values()))
        optimizer.zero_grad()
        values[-1].backward()
        optimizer.step()
    return values[-1].item() / values[0].item(), seen[1] / seen[0]


def test_gradient_through_visibility_lowers_eq_5_by_seeing_nothing():
    """The collapse that the paper does not mention, and the constant weights that prevent it."""
    loss, visibility = change_by_training_patterns(detach=False)
    assert loss < 0.2 and visibility < 0.2
    loss, visibility = change_by_training_patterns(detach=True)
    assert loss > 0.7 and visibility > 0.7


def test_gradient_of_visibility():
    model, batch = aonet_model(), aonet_batch()
    for detach in (False, True):
        model.detach_visibility = detach
        actual = model.landmarks(batch["images"])
        weights = actual.visibility.detach().requires_grad_()
        sum(model.losses(actual._replace(visibility=weights), batch["targets"]).values()).backward()
        if detach:
            assert weights.grad is None
        else:
            assert (weights.grad > 0).all()  # the loss falls with every weight


@pytest.mark.parametrize("row", [None, *ROWS])
def test_every_weight_gets_a_gradient(row):
    model = aonet_model(*ROWS.get(row, ()))
    sum(model(aonet_batch()).values()).backward()
    untrained = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert untrained == []
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["heads.neck.bias"]
    assert model.heads.patterns.grad.abs().max() > 0


def test_loss_falls():
    cfg = aonet_cfg("SOLVER.OPT", "Adam", "SOLVER.BASE_LR", 0.01)
    model, batch, losses = aonet_model(), aonet_batch(12), []
    optimizer = build_optimizer(cfg, model)
    for _ in range(30):
        losses.append(sum(model(batch).values()))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.5 * losses[0]


def test_evaluation_returns_an_embedding():
    model, batch = aonet_model().eval(), aonet_batch()
    with torch.no_grad():
        outputs = model({"images": batch["images"]})
        alone = model({"images": batch["images"][:1]})
    assert outputs.features.shape == (6, LANDMARKS, 16)
    assert outputs.visibility.shape == (6, LANDMARKS)
    assert outputs.visibility.min() >= 0 and outputs.visibility.max() <= 1
    assert not outputs.stripes  # a landmark is no stripe: its visibility has no stripe's truth
    torch.testing.assert_close(alone.features, outputs.features[:1])


@pytest.mark.parametrize("row", [None, *ROWS])
def test_inference_needs_the_memory_but_no_classifier(row):
    model, batch = aonet_model(*ROWS.get(row, ())).eval(), aonet_batch()
    expected = model(batch)
    tops = {key.split(".")[0] for key in model.state_dict()}
    assert tops == {"backbone", "heads", *model.training_only}
    kept = {
        key: value for key, value in model.state_dict().items()
        if key.split(".")[0] not in model.training_only
    }  # fmt: skip
    bare = build_model(aonet_cfg(*ROWS.get(row, ()))).eval()
    for name in bare.training_only:
        delattr(bare, name)
    bare.load_state_dict(kept)
    outputs = bare(batch)
    assert torch.equal(outputs.features, expected.features)
    assert torch.equal(outputs.visibility, expected.visibility)
    has_memory = row != "base_slfea"
    assert ("heads.memory.features" in kept) == has_memory


@pytest.mark.parametrize("after_neck", [True, False])
def test_test_feature_and_neck(after_neck):
    actual = {}
    for stage in ("before", "after", "both"):
        model = aonet_model(
            "MODEL.AONET.TEST_FEATURE", stage, "MODEL.AONET.TEST_AFTER_NECK", after_neck
        ).eval()
        model.heads.neck.running_mean.fill_(0.3)
        actual[stage] = model(aonet_batch()).features
    assert actual["both"].shape == (6, LANDMARKS, 2 * 16)
    torch.testing.assert_close(actual["both"], torch.cat([actual["before"], actual["after"]], 2))
    landmarks = model.landmarks(aonet_batch()["images"])
    features = landmarks.normed if after_neck else landmarks.pooled
    torch.testing.assert_close(actual["before"], nn.functional.normalize(features[0], dim=2))


def test_similarities_of_two_stages_are_averaged():
    similarities = {}
    for stage in ("before", "after", "both"):
        model = aonet_model("MODEL.AONET.TEST_FEATURE", stage).eval()
        rows = make_rows(model(aonet_batch()), "dot")
        similarities[stage] = rows @ rows.T
    mean = (similarities["before"] + similarities["after"]) / 2
    torch.testing.assert_close(similarities["both"], mean)


def test_other_losses_are_weighted_and_named():
    model = aonet_model(
        "MODEL.AONET.OVERLAP_WEIGHT", 2.0, "MODEL.AONET.TRIPLET_WEIGHT", 0.5,
        "MODEL.LOSSES.TRI.MARGIN", 4.0, "MODEL.AONET.ORTHOGONAL_FEATURE", "after_neck",
    )  # fmt: skip
    batch = aonet_batch()
    actual = copy.deepcopy(model).landmarks(batch["images"])
    losses = model(batch)
    assert set(losses) == TERMS | {"loss_overlap", "loss_triplet"}
    overlap = aonet_overlap(to_numpy(normalized_maps(actual.responses)))
    assert losses["loss_overlap"].item() == pytest.approx(2 * overlap, rel=1e-4)
    triplet = landmark_triplet_loss(actual.pooled[-1], batch["targets"], 4.0)
    torch.testing.assert_close(losses["loss_triplet"], 0.5 * triplet)
    orthogonal = aonet_orthogonal(to_numpy(actual.normed[0]))
    assert losses["loss_orthogonal"].item() == pytest.approx(0.01 * orthogonal, rel=1e-3)


def test_step_with_one_stage_and_no_other_losses():
    model = aonet_model(*ROWS["base_slfea"], "MODEL.AONET.ORTHOGONAL_WEIGHT", 0.0)
    assert set(model(aonet_batch())) == {"loss_identity_before"}
    assert model.heads.memory is None
    model.test_feature = "after"  # nothing comes after: the features there are
    assert model.eval()(aonet_batch()).features.shape == (6, LANDMARKS, 16)


def test_update_weighted_by_visibility():
    batch, key = aonet_batch(), "MODEL.AONET.UPDATE_WEIGHTED_BY_AWARENESS"
    model = aonet_model(key, True)
    landmarks, expected = model.landmarks(batch["images"]), aonet_model().heads.memory
    model(batch)
    expected.update(landmarks.features, landmarks.responses, landmarks.visibility)
    torch.testing.assert_close(model.heads.memory.features, expected.features)
    plain = aonet_model(key, False)
    plain(batch)
    assert (plain.heads.memory.features - expected.features).abs().max() > 1e-4


def test_batch_is_not_changed_in_place():
    model, batch = aonet_model(), aonet_batch()
    before = copy.deepcopy(batch)
    model(batch)
    model.eval()(batch)
    for key, value in before.items():
        assert torch.equal(batch[key], value), key


@pytest.mark.parametrize("landmarks", [1, 2, 10])
@pytest.mark.parametrize("images", [1, 3])
def test_any_number_of_landmarks_and_images(landmarks, images):
    model = aonet_model("MODEL.AONET.NUM_LANDMARKS", landmarks)
    losses = model(aonet_batch(images))
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert (losses["loss_orthogonal"] == 0) == (landmarks == 1)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_trains(half):
    model, batch = aonet_model(), aonet_batch()
    expected = {name: value.item() for name, value in copy.deepcopy(model)(batch).items()}
    with torch.autocast("cpu", half):
        losses = model(batch)
    sum(losses.values()).backward()
    for name, value in losses.items():
        assert value.dtype == torch.float32, name
        assert float(value.detach()) == pytest.approx(expected[name], rel=0.05, abs=1e-3), name
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_large_responses_train():
    model, batch = aonet_model(*WITHOUT_NECK), aonet_batch()
    with torch.no_grad():
        model.heads.patterns.mul_(1e4)
    assert model.landmarks(batch["images"]).responses.abs().max() > 1e4
    with torch.autocast("cpu", torch.float16):
        losses = model(batch)
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_precise_bn_runs_on_meaningless_labels():
    with torch.no_grad():
        aonet_model()({**aonet_batch(), "targets": torch.full((6,), -1)})


def test_token_backbone():
    model = aonet_model("MODEL.BACKBONE.NAME", "build_tiny_token_backbone")
    model.backbone.dropout.p = 0.0
    losses = model(aonet_batch())
    sum(losses.values()).backward()
    assert set(losses) == TERMS
    actual = model.eval().landmarks(aonet_batch()["images"])
    tokens = backbone_features(model, aonet_batch()["images"])
    assert actual.maps.shape == (6, LANDMARKS, 4, 2)
    torch.testing.assert_close(actual.features[:, :, 2, 1], tokens[:, 1 + 2 * 2 + 1])


RESNET = (
    "MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.FEAT_DIM", 512,
    "MODEL.BACKBONE.DEPTH", "18x",
)  # fmt: skip


def test_stride_one_stage_keeps_the_map_size():
    """Of a ResNet-18; the multiply-adds of ``test_table_7`` are of a ResNet-50's maps."""
    sizes, weights = [], []
    for stage in ("last", "third", "both"):
        with torch.device("meta"):  # shapes alone
            backbone = build_map_backbone(aonet_cfg(*RESNET, "MODEL.AONET.STRIDE_ONE_STAGE", stage))
            third = nn.Sequential(*list(backbone.children())[:-1])(torch.empty(1, 3, 256, 128))
            sizes.append((third.shape[2:], backbone(torch.empty(1, 3, 256, 128)).shape))
        weights.append({key: value.shape for key, value in backbone.state_dict().items()})
    assert sizes[0] == ((16, 8), (1, 512, 16, 8)) and sizes[1] == ((32, 16), (1, 512, 16, 8))
    assert sizes[2] == ((32, 16), (1, 512, 32, 16))
    assert weights[0] == weights[1] == weights[2]


@pytest.mark.parametrize("stage", ["third", "both"])
@pytest.mark.parametrize(
    "backbone",
    [("build_tiny_map_backbone",), ("build_tiny_token_backbone",),
     ("build_timm_backbone", "resnet10t"), ("build_timm_backbone", "convnext_atto")],
)  # fmt: skip
def test_stride_of_stages_without_strided_convolutions_stays(stage, backbone):
    words = ("MODEL.BACKBONE.NAME", backbone[0], "MODEL.BACKBONE.FEAT_DIM", 0)
    words += ("INPUT.SIZE_TRAIN", [64, 32])
    words += ("MODEL.BACKBONE.TIMM_NAME", *backbone[1:]) if backbone[1:] else ()
    with pytest.raises(UserError, match=f"{stage} needs a network whose .* use last"):
        build_model(aonet_cfg(*words, "MODEL.AONET.STRIDE_ONE_STAGE", stage))


def test_stride_of_both_stages_of_a_network_of_timm():
    sizes = []
    for stage in ("last", "third", "both"):
        words = ("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.BACKBONE.FEAT_DIM", 320)
        words += ("MODEL.BACKBONE.TIMM_NAME", "tf_efficientnet_lite0")
        model = build_model(aonet_cfg(*words, "MODEL.AONET.STRIDE_ONE_STAGE", stage))
        sizes.append(model.backbone(torch.zeros(1, 3, 64, 32)).shape)
    assert sizes == [(1, 320, 4, 2), (1, 320, 4, 2), (1, 320, 8, 4)]


@pytest.mark.parametrize(
    ("stage", "ibn", "gmacs"),
    [
        ("last", False, 4.105),
        ("last", True, 4.106),
        ("third", False, 6.982),
        ("both", False, 12.536),
    ],
)
def test_table_7(stage, ibn, gmacs):
    """30.22 M with 702 identities and the memory; see projects/AONet/README for the sums."""
    cfg = aonet_cfg(
        *RESNET, "MODEL.BACKBONE.DEPTH", "50x", "MODEL.BACKBONE.FEAT_DIM", 2048,
        "MODEL.HEADS.NUM_CLASSES", 702, "MODEL.AONET.NUM_LANDMARKS", 6,
        "MODEL.BACKBONE.WITH_IBN", ibn, "MODEL.AONET.STRIDE_ONE_STAGE", stage,
    )  # fmt: skip
    actual = measure_complexity(build_model(cfg), (256, 128))
    sizes = {each.name: each.parameters for each in actual.modules}
    expected = {
        "backbone": 23_508_032, "heads.patterns": 6 * 2048, "heads.memory": 6 * 2048,
        "heads.attention": 2 * 256 * 2049 + 2048 * 2049 + 1, "heads.neck": 2 * 2048,
        "classifier": 702 * 2048,
    }  # fmt: skip
    assert {name: sizes[name] for name in expected} == expected
    assert actual.params_total == sum(expected.values()) == 30_219_841
    assert actual.params_inference == 28_782_145
    assert actual.macs_inference / 1e9 == pytest.approx(gmacs, abs=5e-4)
    macs = {each.name: each.macs for each in actual.modules}
    responses_and_pooling = macs["heads"] - macs["heads.attention"] - macs["heads.neck"]
    pixels = 512 if stage == "both" else 128
    assert responses_and_pooling == pytest.approx(2 * 6 * 2048 * pixels, rel=1e-3)


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("MEMORY_MOMENTUM", 1.5, r"in \[0, 1\]"),
        ("LABEL_SMOOTHING", 2.0, r"in \[0, 1\)"),
        ("ORTHOGONAL_WEIGHT", -1.0, "0 or more"),
        ("OVERLAP_WEIGHT", -1.0, "0 or more"),
        ("TRIPLET_WEIGHT", -1.0, "0 or more"),
        ("PATTERN_SCALE", 0.0, "above 0"),
        ("TEMPERATURE", 0.0, "above 0"),
        ("ATTENTION_REDUCTION", 0, f"from 1 to the {DIM} channels"),
        ("ATTENTION_REDUCTION", DIM + 1, f"from 1 to the {DIM} channels"),
    ],
)
def test_value_out_of_range_raises(key, value, wanted):
    with pytest.raises(UserError, match=f"MODEL.AONET.{key} is {value}; it must be {wanted}"):
        aonet_model(f"MODEL.AONET.{key}", value)


MULTI_HEAD = "MODEL.AONET.SELF_ATTENTION", "multi_head"


@pytest.mark.parametrize("heads", [0, DIM - 1])
def test_heads_must_divide_the_channels(heads):
    with pytest.raises(UserError, match=f"ATTENTION_HEADS is {heads}; it must be a divisor of"):
        aonet_model(*MULTI_HEAD, "MODEL.AONET.ATTENTION_HEADS", heads)


def test_class_token_backbone_raises():
    with pytest.raises(UserError, match="needs the patch tokens: use build_token_vit_backbone"):
        aonet_model("MODEL.BACKBONE.NAME", "build_vit_backbone")


def test_unknown_choice_raises():
    with pytest.raises(UserError, match=r"VISIBILITY is 'beta'; it can be awareness or maximum"):
        aonet_model("MODEL.AONET.VISIBILITY", "beta")
    with pytest.raises(UserError, match="NUM_LANDMARKS is 0; it must be 1 or more"):
        aonet_model("MODEL.AONET.NUM_LANDMARKS", 0)
    with pytest.raises(UserError, match="did you mean MODEL.AONET.NUM_LANDMARKS"):
        aonet_cfg("MODEL.AONET.NUM_LANDMARK", 4)


def test_other_metric_logs_a_warning(caplog):
    aonet_model()
    assert not caplog.records
    aonet_model("TEST.METRIC", "cosine", "TEST.SIMILARITY", "query")  # which METRIC is not asked
    assert not caplog.records
    aonet_model("TEST.METRIC", "cosine")
    assert "TEST.METRIC dot" in caplog.text


def test_model_without_identities_evaluates():
    model = build_model(aonet_cfg("MODEL.HEADS.NUM_CLASSES", 0)).eval()
    assert model(aonet_batch()).features.shape == (6, LANDMARKS, 16)
    assert aonet_model().classifier.out_features == IDENTITIES
