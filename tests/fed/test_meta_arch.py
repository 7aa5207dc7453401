"""The whole model: Eq. 10 from its parts, the two branches, switches, and what inference needs."""

from __future__ import annotations

import copy

import pytest
import torch
from fastreid.modeling.meta_arch import build_model
from reference import cross_entropy, fed_contrast, fed_total, fed_visibility_loss
from torch.utils._python_dispatch import TorchDispatchMode

from fed.tiny import (
    IDENTITIES,
    PARTS,
    build_fdm,
    disable_dropout,
    fed_batch,
    fed_cfg,
    fed_model,
    to_numpy,
)
from fed_plugin.head import FEDHead
from occluded_reid.engine.optimizer import build_optimizer
from occluded_reid.utils.errors import UserError

TERMS = {
    f"loss_{term}_{branch}"
    for branch in ("holistic", "occluded")
    for term in (
        "visibility",
        "identity_class_token",
        "identity_erased",
        "identity_diffused",
        "contrast_erased",
        "contrast_diffused",
    )
}


def test_twelve_terms_equal_eq_10():
    model, batch = disable_dropout(fed_model()), fed_batch()
    banks = [to_numpy(memory.centres) for memory in (model.erased_memory, model.diffused_memory)]
    untouched = copy.deepcopy(model)
    losses = model(batch)
    assert set(losses) == TERMS

    parts = untouched.part_features(torch.cat([batch["images"], batch["occluded_images"]]))
    labels = batch["targets"].tolist()
    diffused = untouched.diffuse(parts, batch["targets"].repeat(2))
    visibility, identity, contrast = [], [], []
    for branch in range(2):
        rows = slice(6 * branch, 6 * branch + 6)
        masks = torch.ones(6, PARTS) if branch == 0 else batch["part_visibility"]
        visibility.append(fed_visibility_loss(to_numpy(parts.visibility[rows]), to_numpy(masks)))
        for name, feature in (
            ("class_token", parts.class_token),
            ("erased", parts.embedding),
            ("diffused", diffused),
        ):
            logits = to_numpy(feature[rows]) @ to_numpy(untouched.classifiers[name].weight).T
            identity.append(cross_entropy(logits, labels))
        for feature, centres in zip((parts.embedding, diffused), banks, strict=True):
            contrast.append(fed_contrast(to_numpy(feature[rows]), centres, labels, 0.05))
    expected = fed_total(visibility, identity, contrast)
    assert sum(losses.values()).item() == pytest.approx(expected, rel=1e-4)
    branches = ("holistic", "occluded")
    named = dict(zip((f"visibility_{b}" for b in branches), visibility, strict=True))
    features = ("class_token", "erased", "diffused")
    named |= zip((f"identity_{f}_{b}" for b in branches for f in features), identity, strict=True)
    banked = features[1:]
    named |= zip((f"contrast_{f}_{b}" for b in branches for f in banked), contrast, strict=True)
    for name, value in named.items():
        assert losses[f"loss_{name}"].item() == pytest.approx(value / 2, rel=1e-4), name


def test_only_the_holistic_branch_updates_the_banks():
    centres = []
    for factor in (1.0, 0.3):
        model = disable_dropout(fed_model("MODEL.FED.NECK", False))  # the neck sees both branches
        batch = fed_batch()
        batch["occluded_images"] *= factor
        model(batch)
        centres.append((model.erased_memory.centres, model.diffused_memory.centres))
        assert not torch.equal(
            model.erased_memory.centres[:3], fed_model().erased_memory.centres[:3]
        )
    torch.testing.assert_close(centres[0], centres[1], rtol=0, atol=1e-6)


def test_every_weight_gets_a_gradient():
    model = fed_model()
    sum(model(fed_batch()).values()).backward()
    untrained = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert untrained == []
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["heads.neck.bias", "diffusion.neck.bias"]


def test_diffused_losses_train_the_erased_features():
    """Sec. 3.2: optimizing the diffused features is meant to improve the erased ones."""
    model = fed_model()
    losses = model(fed_batch())
    sum(value for name, value in losses.items() if "diffused" in name).backward()
    for parameter in (
        model.heads.neck.weight,
        model.heads.erasing.scorers[0][0].weight,
        model.backbone.patches.weight,
    ):
        assert parameter.grad.abs().max() > 1e-6


class SyncRecorder(TorchDispatchMode):
    """Records the operations that make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_unique2"):
            self.calls.append(name)
        return function(*arguments, **(options or {}))


def test_step_never_synchronizes():
    model, batch = fed_model(), fed_batch()
    with SyncRecorder() as recorder:
        sum(model(batch).values()).backward()
    assert recorder.calls == []


def test_loss_falls():
    cfg = fed_cfg("SOLVER.OPT", "SGD", "SOLVER.BASE_LR", 0.05)
    model, batch = fed_model(), fed_batch(12)
    optimizer, losses = build_optimizer(cfg, model), []
    for _ in range(20):
        losses.append(sum(model(batch).values()))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.6 * losses[0]


def test_evaluation_returns_an_embedding():
    model, batch = fed_model().eval(), fed_batch()
    with torch.no_grad():
        outputs = model({"images": batch["images"]})
        alone = model({"images": batch["images"][:1]})
    assert outputs.features.shape == (6, PARTS, 16) and outputs.visibility.shape == (6, PARTS)
    assert outputs.visibility.min() >= 0 and outputs.visibility.max() <= 1
    torch.testing.assert_close(alone.features, outputs.features[:1])
    parts = model.part_features(batch["images"])
    assert torch.equal(outputs.features.flatten(1), parts.embedding)


def test_inference_needs_no_training_part():
    model, batch = fed_model().eval(), fed_batch()
    expected = model(batch)
    for name in model.training_only:
        delattr(model, name)
    assert {key.split(".")[0] for key in model.state_dict()} == {"backbone", "heads"}
    outputs = model(batch)
    assert torch.equal(outputs.features, expected.features)
    assert torch.equal(outputs.visibility, expected.visibility)


def test_training_only_names_all_but_backbone_and_head():
    model = fed_model()
    tops = {key.split(".")[0] for key in model.state_dict()}
    assert tops == {"backbone", "heads", *model.training_only}


def test_batch_is_not_changed_in_place():
    model, batch = fed_model(), fed_batch()
    before = copy.deepcopy(batch)
    model(batch)
    model.eval()(batch)
    for key, value in before.items():
        assert torch.equal(batch[key], value), key


def test_single_images_equal_pairs_of_the_same_image():
    """One branch, whose terms count twice."""
    single = fed_batch(pairs=False)
    pair = {
        **single, "occluded_images": single["images"], "part_visibility": torch.ones(6, PARTS),
    }  # fmt: skip
    one, two = (disable_dropout(fed_model())(batch) for batch in (single, pair))
    assert {name.rsplit("_", 1)[1] for name in one} == {"holistic"}
    assert 2 * len(one) == len(two)
    torch.testing.assert_close(sum(one.values()), sum(two.values()))


def test_single_occluded_image_has_its_own_labels():
    """INPUT.NPO.MODE replace: the image itself is occluded."""
    model = disable_dropout(fed_model())
    batch = {**fed_batch(pairs=False), "part_visibility": torch.zeros(6, PARTS)}
    visibility = model.part_features(batch["images"]).visibility
    loss = fed_visibility_loss(to_numpy(visibility), to_numpy(batch["part_visibility"]))
    assert model(batch)["loss_visibility_holistic"].item() == pytest.approx(loss, rel=1e-5)


OFF = {
    "ERASING": ("visibility",),
    "VISIBILITY_LOSS": ("visibility",),
    "DIFFUSION": ("diffused",),
    "CONTRAST_LOSS": ("contrast",),
}


@pytest.mark.parametrize("switch", OFF)
def test_switch_removes_terms_and_modules(switch):
    model = fed_model(f"MODEL.FED.{switch}", False)
    losses = model(fed_batch())
    gone = {name for name in TERMS if any(word in name for word in OFF[switch])}
    assert set(losses) == TERMS - gone
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert (model.diffusion is None) == (switch == "DIFFUSION")
    assert (model.diffused_memory is None) == (switch in ("DIFFUSION", "CONTRAST_LOSS"))
    assert model.erased_memory is not None


def test_everything_off_leaves_identity_losses():
    off = [f"MODEL.FED.{key}" for key in ("ERASING", "DIFFUSION", "CONTRAST_LOSS")]
    model = fed_model(*(word for key in off for word in (key, False)))
    kinds = ("identity_class_token", "identity_erased")
    assert set(model(fed_batch(pairs=False))) == {f"loss_{kind}_holistic" for kind in kinds}
    assert model.erased_memory is None and model.diffused_memory is None
    assert model.training_hooks(fed_cfg()) == []
    assert torch.equal(model.eval()(fed_batch()).visibility, torch.ones(6, PARTS))


@pytest.mark.parametrize(("identities", "neighbors"), [(1, 8), (2, 8), (IDENTITIES, 50)])
def test_fewer_other_identities_than_neighbors(identities, neighbors):
    overrides = ("MODEL.HEADS.NUM_CLASSES", identities, "MODEL.FED.NUM_NEIGHBORS", neighbors)
    model = fed_model(*overrides, filled=False)
    batch = fed_batch()
    batch["targets"] %= identities
    for _ in range(2):  # from an empty bank, as a dry run does, and from a written one
        losses = model(batch)
        sum(losses.values()).backward()
        assert all(value.isfinite() for value in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_single_identity_in_the_batch():
    batch = fed_batch()
    batch["targets"].fill_(5)
    model = fed_model()
    before = model.erased_memory.centres.clone()
    assert all(value.isfinite() for value in model(batch).values())
    changed = (model.erased_memory.centres != before).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [5]


def test_bfloat16_autocast_trains():
    model, batch = disable_dropout(fed_model()), fed_batch()
    expected = {name: value.item() for name, value in copy.deepcopy(model)(batch).items()}
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(batch)
    sum(losses.values()).backward()
    for name, value in losses.items():
        assert value.dtype == torch.float32, name
        assert float(value) == pytest.approx(expected[name], rel=0.15, abs=0.03), name
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_precise_bn_runs_on_meaningless_labels():
    model = fed_model()
    with torch.no_grad():
        model({**fed_batch(), "targets": torch.full((6,), -1)})


def test_stripes_must_match_parts():
    batch = fed_batch()
    batch["part_visibility"] = torch.ones(6, 2)
    with pytest.raises(UserError, match="labels 2 stripes .* has 4 parts"):
        fed_model()(batch)


def test_convolutional_backbone():
    model = fed_model("MODEL.BACKBONE.NAME", "build_tiny_map_backbone")
    losses = model(fed_batch())
    sum(losses.values()).backward()
    assert set(losses) == TERMS
    assert model.eval()(fed_batch()).features.shape == (6, PARTS, 16)


def test_class_token_is_concatenated():
    model = fed_model("MODEL.FED.CONCATENATE_CLASS_TOKEN", True).eval()
    features = model(fed_batch()).features
    assert features.shape == (6, 1, 80)
    torch.testing.assert_close(features[:, 0, :16].norm(dim=1), torch.ones(6))
    torch.testing.assert_close(features[:, 0, 16:].norm(dim=1), torch.ones(6))


def test_paper_sizes():
    """ViT-B/16 at 256 x 128, 702 identities: 768 channels, 3072-d features."""
    cfg = fed_cfg("MODEL.FED.NUM_HEADS", 8, "MODEL.FED.NUM_NEIGHBORS", 8)
    fed = cfg.MODEL.FED
    with torch.device("meta"):
        head = FEDHead(dim=768, num_parts=fed.NUM_PARTS, grid=(16, 8), erasing=True, neck=True)
        diffusion = build_fdm(768, 4, num_neighbors=8, num_heads=8)
        parts = head(torch.empty(2, 129, 768))
    assert parts.embedding.shape == (2, 3072) and parts.visibility.shape == (2, 4)
    assert head.erasing.scorers[0][0].weight.shape == (192, 768)
    assert diffusion.attention.scale == pytest.approx(384**-0.5)
    assert (fed.MEMORY_MOMENTUM, fed.TEMPERATURE, fed.NUM_PARTS) == (0.2, 0.05, 4)


def test_model_without_identities_evaluates():
    model = build_model(fed_cfg("MODEL.HEADS.NUM_CLASSES", 0)).eval()
    assert model(fed_batch()).features.shape == (6, PARTS, 16)
