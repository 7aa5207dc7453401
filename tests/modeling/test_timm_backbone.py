"""timm's networks as backbones: layout, stride, unused parts, refusals; every FEAT_DIM."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastreid.config import CfgNode
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from torch import nn

from occluded_reid.config import changed_copy, load_config
from occluded_reid.config.methods import installed_methods
from occluded_reid.engine.dry_run import dry_run
from occluded_reid.modeling.build import build_model, complete
from occluded_reid.modeling.timm_backbone import TimmBackbone, create_backbone
from occluded_reid.utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
SIZE = (64, 32)


def create(name: str, size: tuple[int, int] = SIZE, **options: Any) -> TimmBackbone:
    chosen: dict[str, Any] = {"last_stride": 1, "feature": "block", "tokens": False}
    return create_backbone(name, size, **(chosen | options)).eval()


def timm_cfg(name: str, *overrides: object, file: str = "") -> CfgNode:
    words: list[object] = ["MODEL.DEVICE", "cpu", "SEED", 1, "MODEL.BACKBONE.FEAT_DIM", 0]
    words += ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.BACKBONE.TIMM_NAME", name]
    words += ["INPUT.SIZE_TRAIN", list(SIZE), "INPUT.SIZE_TEST", list(SIZE)]
    words += ["MODEL.BACKBONE.PRETRAIN", False, "MODEL.HEADS.NUM_CLASSES", 4, *overrides]
    return load_config(file, [str(word) for word in words], add_keys=installed_methods())


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("tf_efficientnet_lite0", {}, (320, 4, 2)),
        ("tf_efficientnet_lite0", {"feature": "head"}, (1280, 4, 2)),
        ("tf_efficientnet_lite0", {"last_stride": 2}, (320, 2, 1)),
        ("resnet18", {}, (512, 4, 2)),
        ("test_vit", {}, (64, 4, 2)),
        ("test_vit", {"tokens": True}, (9, 64)),
        ("test_mambaout", {"last_stride": 2}, None),  # timm's layout is NHWC
    ],
)
def test_features(name, options, shape):
    backbone = create(name, **options)
    with torch.no_grad():
        features = backbone(torch.randn(2, 3, *SIZE))
    if shape is None:
        shape = (backbone.network.num_features, 2, 1)
    assert features.shape == (2, *shape)


def test_tokens_are_the_class_token_and_the_patches():
    """DINOv3 has four registers between them, and no position embeddings but rotary ones."""
    backbone = create("vit_small_patch16_dinov3", tokens=True)
    images = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        raw, tokens = backbone.network.forward_features(images), backbone(images)
        laid_out = TimmBackbone(backbone.network, tokens=False)(images)
    assert raw.shape[1] == 1 + 4 + 8 and backbone.grid == (4, 2)
    torch.testing.assert_close(tokens, torch.cat((raw[:, :1], raw[:, 5:]), dim=1))
    torch.testing.assert_close(laid_out[0, :, 1, 0], raw[0, 5 + 2])


@pytest.mark.parametrize(
    "name",
    [
        "test_convnext",
        "mobilenetv3_small_050",
        pytest.param("vit_base_patch16_siglip_224", marks=pytest.mark.slow),
        pytest.param("cait_xxs24_224", marks=pytest.mark.slow),
    ],
)
def test_every_parameter_has_a_gradient(name):
    """DDP needs it: what only timm's pooling or classifier reads is not kept."""
    backbone = create(name, last_stride=2)
    backbone(torch.randn(2, 3, *SIZE)).sum().backward()
    for key, parameter in backbone.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet5", {}, "TIMM_NAME is 'resnet5', which timm does not have; did you mean resnet50"),
        ("", {}, "TIMM_NAME is ''.*timm.list_models"),
        ("vgg11", {}, "LAST_STRIDE is 1, but the last stage of vgg11 cannot be dilated: use 2"),
        ("mixer_s16_224", {}, "gives no feature map, and no tokens on a grid"),
        ("resnet18", {"feature": "head"}, "resnet18 has no head convolution before its pooling"),
        ("nest_tiny", {"last_stride": 2}, r"nest_tiny cannot take images of \[64, 32\] \(.*square"),
    ],
)
def test_a_network_that_cannot_serve_is_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        create(name, **options)


@pytest.mark.parametrize(
    ("key", "value"),
    [("WITH_IBN", True), ("NORM", "syncBN"), ("CAMERA_EMBEDDING", 2), ("PATCH_SIZE", [8, 8])],
)
def test_keys_of_other_backbones_are_refused(key, value):
    with pytest.raises(UserError, match=f"{key} .* does not apply to build_timm_backbone"):
        build_model(timm_cfg("test_resnet", f"MODEL.BACKBONE.{key}", value))


def test_transformers_take_drop_path_and_recomputation():
    cfg = timm_cfg("test_vit", "MODEL.BACKBONE.RECOMPUTE", True)
    network = build_model(cfg).backbone.network
    assert network.grad_checkpointing and network.blocks[-1].drop_path1.drop_prob > 0


class Odd(nn.Module):
    """A backbone that cannot be run without values."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3), keepdim=True) * float(images.max() > 0)


@pytest.mark.parametrize(
    ("name", "more", "dim"),
    [
        ("build_resnet_backbone", ("MODEL.BACKBONE.DEPTH", "18x"), 512),
        ("build_token_vit_backbone", ("MODEL.BACKBONE.DEPTH", "tiny"), 192),
        ("build_osnet_backbone", ("MODEL.BACKBONE.DEPTH", "x1_0"), 512),
        ("build_timm_backbone", ("MODEL.BACKBONE.TIMM_NAME", "test_resnet"), 96),
    ],
)
def test_feature_dim_is_the_backbones(name, more, dim):
    cfg = timm_cfg("", "MODEL.BACKBONE.NAME", name, "MODEL.META_ARCHITECTURE", "FED", *more[:2])
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    completed = complete(cfg)
    assert dim == completed.MODEL.BACKBONE.FEAT_DIM and cfg.MODEL.BACKBONE.FEAT_DIM == 0
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1]) and states[2] == random.getstate()
    with changed_copy(cfg) as cfg:
        cfg.MODEL.BACKBONE.FEAT_DIM = 7
    with pytest.raises(UserError, match=f"FEAT_DIM is 7, but .* {dim}"):
        build_model(cfg)


def test_a_network_is_whole_where_no_gradients_are_recorded():
    options = {"last_stride": 1, "feature": "block", "tokens": False}
    with torch.inference_mode():
        backbone = create_backbone("tf_efficientnet_lite0", (96, 48), **options)
        assert backbone.eval()(torch.zeros(1, 3, 96, 48)).shape == (1, 320, 6, 3)


def test_a_backbone_that_cannot_be_measured_needs_a_number(monkeypatch):
    monkeypatch.setitem(BACKBONE_REGISTRY._obj_map, "odd", lambda cfg: Odd())
    cfg = timm_cfg("", "MODEL.BACKBONE.NAME", "odd")
    with pytest.raises(UserError, match="FEAT_DIM is 0, and odd does not tell its number"):
        build_model(cfg)
    assert build_model(timm_cfg("", "MODEL.BACKBONE.NAME", "odd", "MODEL.BACKBONE.FEAT_DIM", 3))


@pytest.mark.parametrize("method", ["FED", "AONet", "Baseline"])
@pytest.mark.parametrize(
    "name",
    [
        "test_efficientnet",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "tf_efficientnet_lite0", "resnet50", "convnext_atto", "regnety_008",
                "vit_small_patch14_dinov2", "vit_small_patch16_dinov3",
            )
        ),
    ],
)  # fmt: skip
def test_dry_run(name, method, capsys):
    files = {
        "FED": "projects/FED/configs/market1501.yml",
        "AONet": "projects/AONet/configs/market1501.yml",
        "Baseline": "configs/market1501_baseline.yml",
    }
    size = [112, 56] if "patch14" in name else [128, 64]  # whole stripes
    cfg = timm_cfg(
        name, "INPUT.SIZE_TRAIN", size, "INPUT.SIZE_TEST", size, "DATALOADER.NUM_INSTANCE", 2,
        "MODEL.HEADS.NUM_CLASSES", 0,
        file=str(ROOT / files[method]),
    )  # fmt: skip
    dry_run(cfg)
    assert "features: (4, " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_channels_last_compiled_and_exported(name):
    model = build_model(timm_cfg(name, "MODEL.CHANNELS_LAST", True)).eval()
    batch = {"images": torch.rand(2, 3, *SIZE) * 255}
    expected = model(batch)
    torch._dynamo.reset()
    model.backbone.compile(fullgraph=True, backend="eager")
    torch.testing.assert_close(model(batch), expected)
    backbone, images = create(name), torch.rand(2, 3, *SIZE)
    exported = torch.export.export(backbone, (images,)).module()
    torch.testing.assert_close(exported(images), backbone(images))
