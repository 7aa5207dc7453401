"""Token transformers: what they compute, and the weights they can be given."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from fastreid.modeling import build_model
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.modeling.backbones import vision_transformer as fastreid_vit
from fastreid.solver import build_lr_scheduler
from safetensors.torch import save_file
from timm.layers import Mlp
from vit_weights import add_prefix, build_vit, to_google_format

from occluded_reid.checkpoint.pretrained import download_weights, guess_grid, load_weights
from occluded_reid.config import load_config
from occluded_reid.engine.optimizer import build_optimizer
from occluded_reid.modeling import backbones
from occluded_reid.modeling.vit import ClassTokenViT, LeanMlp, TokenViT
from occluded_reid.utils.errors import UserError

CONFIG = """
MODEL:
  BACKBONE:
    {NAME: build_token_vit_backbone, DEPTH: custom, FEAT_DIM: 12, NUM_BLOCKS: 2, NUM_HEADS: 3,
     PATCH_SIZE: [8, 8], STRIDE_SIZE: [8, 8]}
  HEADS: {POOL_LAYER: Identity, WITH_BNNECK: True, NUM_CLASSES: 5}
INPUT: {SIZE_TRAIN: [32, 16], SIZE_TEST: [32, 16]}
"""


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def load_vit_config(tmp_path: Path, *overrides):
    path = tmp_path / "vit.yml"
    path.write_text(CONFIG)
    return load_config(str(path), ["MODEL.DEVICE", "cpu", *map(str, overrides)])


def build_from_config(tmp_path: Path, *overrides):
    cfg = load_vit_config(tmp_path, *overrides)
    return BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg).eval()


def random_images(count=2, size=(32, 16), **options):
    return torch.rand(count, 3, *size, **options)


# -------------------------------------------------------------------------- the forward pass


def vit_in_loops(weights, image, heads, patch, stride):
    """Compute Dosovitskiy et al.'s transformer in loops over patches, heads and tokens."""

    def norm(x, name):
        x = x - x.mean()
        x = x / torch.sqrt((x * x).mean() + 1e-6)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x, name):
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    kernel, tokens = weights["patch_embed.proj.weight"], [weights["cls_token"][0, 0]]
    for top in range(0, image.shape[1] - patch[0] + 1, stride[0]):
        for left in range(0, image.shape[2] - patch[1] + 1, stride[1]):
            piece = image[:, top : top + patch[0], left : left + patch[1]]
            tokens.append((kernel * piece).sum((1, 2, 3)) + weights["patch_embed.proj.bias"])
    tokens = [token + weights["pos_embed"][0, i] for i, token in enumerate(tokens)]
    dim = len(tokens[0])
    head_dim = dim // heads
    for block in ("blocks.0", "blocks.1"):
        qkv = [linear(norm(token, f"{block}.norm1"), f"{block}.attn.qkv") for token in tokens]
        mixed = []
        for row in qkv:
            parts = []
            for head in range(heads):
                own = slice(head * head_dim, (head + 1) * head_dim)
                query = row[:dim][own]
                scores = [
                    math.exp(query @ k[dim : 2 * dim][own] / math.sqrt(head_dim)) for k in qkv
                ]
                values = [s * v[2 * dim :][own] for s, v in zip(scores, qkv, strict=True)]
                parts.append(sum(values) / sum(scores))
            mixed.append(linear(torch.cat(parts), f"{block}.attn.proj"))
        tokens = [token + mix for token, mix in zip(tokens, mixed, strict=True)]
        for i, token in enumerate(tokens):
            hidden = linear(norm(token, f"{block}.norm2"), f"{block}.mlp.fc1")
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
            tokens[i] = token + linear(hidden, f"{block}.mlp.fc2")
    return torch.stack([norm(token, "norm") for token in tokens])


@pytest.mark.parametrize("stride", [(8, 8), (5, 4)])
@torch.no_grad()
def test_tokens_equal_the_loop(stride, monkeypatch):
    model = build_vit(stride=stride).double()
    batch = random_images(dtype=torch.float64)
    calls = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k)
    )
    tokens = model(batch)
    assert len(calls) == 2  # one per block
    for image, actual in zip(batch, tokens, strict=True):
        wanted = vit_in_loops(model.state_dict(), image, 3, (8, 8), stride)
        torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("size", "patch", "stride", "grid"),
    [
        ((256, 128), (16, 16), (16, 16), (16, 8)),  # FED: n = 128
        ((256, 128), (16, 16), (12, 12), (21, 10)),  # TransReID's sliding window
        ((384, 128), (16, 16), (16, 16), (24, 8)),
        ((224, 224), (32, 16), (32, 16), (7, 14)),
        ((30, 17), (8, 5), (7, 4), (4, 4)),
    ],
)
@torch.no_grad()
def test_grid(size, patch, stride, grid):
    model = build_vit(img_size=size, patch_size=patch, stride=stride, depth=1)
    assert model.grid == grid and model.feature_dim == 12
    assert model(random_images(1, size)).shape == (1, 1 + grid[0] * grid[1], 12)


@torch.no_grad()
def test_class_token_vit_returns_a_map():
    model = build_vit(ClassTokenViT)
    batch = random_images()
    assert model(batch).shape == (2, 12, 1, 1)
    torch.testing.assert_close(model(batch)[:, :, 0, 0], TokenViT.forward(model, batch)[:, 0])


@torch.no_grad()
def test_images_do_not_mix():
    model, batch = build_vit(), random_images(3)
    torch.testing.assert_close(model(batch)[1:2], model(batch[1:2]))


@torch.no_grad()
def test_camera_embedding():
    model = build_vit(num_cameras=3, camera_weight=2.5, depth=0)
    plain = build_vit(depth=0)
    state = model.state_dict()
    camera = state.pop("sie_embed")
    plain.load_state_dict(state)
    for each in (model, plain):
        each.norm = torch.nn.Identity()
    batch = random_images()
    actual = model(batch, torch.tensor([2, 0])) - plain(batch)
    torch.testing.assert_close(actual[0], 2.5 * camera[2].expand_as(actual[0]))
    torch.testing.assert_close(actual[1], 2.5 * camera[0].expand_as(actual[1]))
    with pytest.raises(UserError, match="CAMERA_EMBEDDING needs the camera of every image"):
        model(batch)


@pytest.mark.parametrize("kind", [TokenViT, ClassTokenViT])
def test_every_weight_gets_a_gradient(kind):
    model = build_vit(kind, num_cameras=2).train()
    model(random_images(), torch.tensor([0, 1])).square().sum().backward()
    untrained = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert untrained == []


def test_recompute_gives_equal_gradients():
    plain = build_vit().train()
    saving = build_vit(recompute=True).train()
    saving.load_state_dict(plain.state_dict())
    batch, counts = random_images(), []
    saving.blocks[0].register_forward_pre_hook(lambda *_: counts.append(1))
    for model in (plain, saving):
        model(batch).square().sum().backward()
    assert len(counts) == 2
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@torch.no_grad()
def test_bfloat16_autocast():
    model, batch = build_vit(), random_images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = model(batch)
    assert actual.isfinite().all()
    torch.testing.assert_close(actual.float(), model(batch), rtol=0.1, atol=0.1)
    assert not torch.equal(actual.float(), model(batch))


@torch.no_grad()
def test_drop_path_acts_only_in_training(tmp_path):
    batch = random_images(8)
    model = build_from_config(tmp_path, "MODEL.BACKBONE.DROP_PATH_RATIO", 0.5)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    assert torch.equal(model(batch), model(batch))
    model.train()
    assert not torch.equal(model(batch), model(batch))
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert rates == [0.0, 0.5]


# ----------------------------------------------------------------------------- configuration


@torch.no_grad()
def test_config_reaches_the_transformer(tmp_path):
    keys = ("MODEL.BACKBONE.CAMERA_EMBEDDING", 4, "MODEL.BACKBONE.MLP_RATIO", 2.0)
    model = build_from_config(tmp_path, *keys, "MODEL.BACKBONE.STRIDE_SIZE", "[4, 4]")
    assert type(model) is TokenViT and model.grid == (7, 3)
    assert model.sie_embed.shape == (4, 1, 12) and model.camera_weight == 3.0
    assert model.blocks[0].mlp.fc1.out_features == 24 and model.blocks[0].attn.num_heads == 3
    assert not model.grad_checkpointing
    dropping = build_from_config(
        tmp_path, "MODEL.BACKBONE.DROP_RATIO", 0.1, "MODEL.BACKBONE.RECOMPUTE", True
    )
    assert dropping.pos_drop.p == dropping.blocks[0].mlp.drop1.p == 0.1
    assert dropping.grad_checkpointing


@pytest.mark.parametrize(("depth", "width", "heads"), [("tiny", 192, 3), ("small", 384, 6)])
def test_named_depths(tmp_path, depth, width, heads):
    keys = ("MODEL.BACKBONE.DEPTH", depth, "MODEL.BACKBONE.FEAT_DIM", width)
    model = build_from_config(tmp_path, *keys)
    assert (model.feature_dim, len(model.blocks)) == (width, 12)
    assert model.blocks[0].attn.num_heads == heads
    assert model.blocks[0].mlp.fc1.out_features == 4 * width


def test_fastreid_baseline_on_the_class_token(tmp_path):
    keys = ("MODEL.BACKBONE.NAME", "build_class_token_vit_backbone")
    model = build_model(load_vit_config(tmp_path, *keys)).eval()
    assert model({"images": random_images() * 255}).shape == (2, 12)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("MODEL.BACKBONE.DEPTH", "50x"), "DEPTH is '50x'; it can be tiny, small, base or custom"),
        (("MODEL.BACKBONE.DEPTH", "base"), "FEAT_DIM is 12, but DEPTH base has 768"),
        (("MODEL.BACKBONE.NUM_HEADS", 5), "FEAT_DIM is 12, but DEPTH custom has 5 heads"),
        (("INPUT.SIZE_TEST", "[64, 32]"), r"SIZE_TEST \[64, 32\] must equal INPUT.SIZE_TRAIN"),
        (("MODEL.BACKBONE.PATCH_SIZE", "[8, 17]"), r"PATCH_SIZE \[8, 17\] .* do not fit"),
        (("MODEL.BACKBONE.STRIDE_SIZE", "[0, 8]"), r"STRIDE_SIZE \[0, 8\] do not fit"),
        (("MODEL.BACKBONE.POSITION_RESIZE", "cubic"), "'cubic'; it can be bicubic or bilinear"),
    ],
)
def test_inconsistent_values_raise(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        build_from_config(tmp_path, *overrides)


def test_base_vit_config_is_the_paper_recipe():
    path = Path(__file__).parents[2] / "configs" / "Base-ViT.yml"
    cfg = load_config(str(path), ["MODEL.DEVICE", "cpu"])
    assert list(cfg.INPUT.SIZE_TRAIN) == [256, 128] and cfg.SOLVER.MAX_EPOCH == 120
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    optimizer = build_optimizer(cfg, model)
    groups = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert isinstance(optimizer, torch.optim.SGD) and set(groups) == {(0.008, 1e-4), (0.016, 1e-4)}
    schedule = build_lr_scheduler(cfg, optimizer, 244)  # Occluded-Duke: 15,618 images
    warm_up, cosine = schedule["warmup_sched"], schedule["lr_sched"]
    assert warm_up.warmup_iters / 244 == 5 and warm_up.warmup_factor == 0.01
    assert cosine.T_max == 115 and cosine.eta_min == 0.002 * 0.008
    assert cfg.SOLVER.IMS_PER_BATCH / cfg.DATALOADER.NUM_INSTANCE == 16
    for value in (*cfg.MODEL.PIXEL_MEAN, *cfg.MODEL.PIXEL_STD):
        assert value == 0.5 * 255


# ------------------------------------------------------------------------------------ weights


EXTRA = {"head.weight": torch.ones(7, 12), "head.bias": torch.ones(7)}
OTHERS = {"classifier.weight": torch.ones(5, 12), "bottleneck.bias": torch.ones(12)}
SCHEMES = {
    "timm": lambda w: {**w, **EXTRA},
    "jx_vit": lambda w: {**w, **EXTRA, "pre_logits.fc.weight": torch.ones(12, 12)},
    "DeiT": lambda w: {"model": {**w, **EXTRA}, "epoch": 3},
    "state_dict": lambda w: {"state_dict": add_prefix({**w, **EXTRA}, "module.")},
    "TransReID": lambda w: {**add_prefix({**w, "fc.weight": torch.ones(7, 12)}, "base."), **OTHERS},
    "TransReID, parallel": lambda w: add_prefix({**add_prefix(w, "base."), **OTHERS}, "module."),
    "fast-reid": lambda w: {"model": OrderedDict({**add_prefix(w, "backbone."), **OTHERS})},
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_weights_of_every_source_are_loaded(tmp_path, caplog, scheme, suffix):
    source, batch = build_vit(), random_images()
    content = SCHEMES[scheme]({key: value.clone() for key, value in source.state_dict().items()})
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(content, path)
    else:
        save_file(content.get("model", content.get("state_dict", content)), path)
    logging.getLogger("occluded_reid").propagate = True
    with caplog.at_level(logging.INFO):
        model = build_from_config(tmp_path, "MODEL.BACKBONE.PRETRAIN", True, *pretrain_path(path))
    torch.testing.assert_close(model(batch), source(batch), rtol=0, atol=0)
    output = caplog.text.replace("module.", "")
    if "TransReID" in scheme or scheme == "fast-reid":
        assert "not of the backbone: bottleneck.bias, classifier.weight" in output
    else:
        assert "of its classifier: head.bias, head.weight" in output


def pretrain_path(path):
    return ("MODEL.BACKBONE.PRETRAIN_PATH", str(path))


@pytest.mark.parametrize("stride", [(8, 8), (6, 6)])
@torch.no_grad()
def test_fastreid_weights_give_fastreid_features(tmp_path, stride):
    theirs = fastreid_vit.VisionTransformer(
        img_size=(32, 16),
        patch_size=8,
        stride_size=list(stride),
        embed_dim=12,
        depth=2,
        num_heads=3,
        qkv_bias=True,
    ).eval()
    torch.save(theirs.state_dict(), tmp_path / "fastreid.pth")
    ours = build_vit(ClassTokenViT, stride)
    load_weights(ours, str(tmp_path / "fastreid.pth"), resize="bilinear")
    batch = random_images()
    torch.testing.assert_close(ours(batch), theirs(batch), rtol=0, atol=1e-5)


@torch.no_grad()
def test_distilled_and_linear_weights(tmp_path):
    source = build_vit()
    weights = source.state_dict()
    kernel, positions = weights["patch_embed.proj.weight"], weights["pos_embed"]
    distilled = torch.cat((positions[:, :1], torch.full((1, 1, 12), 9.0), positions[:, 1:]), dim=1)
    torch.save(
        {
            **weights,
            "patch_embed.proj.weight": kernel.flatten(1),
            "pos_embed": distilled,
            "dist_token": torch.ones(1, 1, 12),
            "head_dist.weight": torch.ones(7, 12),
        },
        tmp_path / "deit.pth",
    )
    model = build_vit()
    load_weights(model, str(tmp_path / "deit.pth"), resize="bicubic")
    batch = random_images()
    torch.testing.assert_close(model(batch), source(batch), rtol=0, atol=0)


@torch.no_grad()
def test_google_weights_are_loaded(tmp_path, caplog):
    square = build_vit(img_size=(32, 32))
    classifier = {"head/kernel": np.ones((12, 7)), "head/bias": np.ones(7)}
    np.savez(tmp_path / "augreg.npz", **to_google_format(square.state_dict()), **classifier)
    again, batch = build_vit(img_size=(32, 32)), random_images(size=(32, 32))
    logging.getLogger("occluded_reid").propagate = True
    with caplog.at_level(logging.INFO):
        load_weights(again, str(tmp_path / "augreg.npz"), resize="bicubic")
    torch.testing.assert_close(again(batch), square(batch), rtol=0, atol=1e-6)
    assert "of its classifier: head/bias, head/kernel" in caplog.text
    narrow = build_vit()  # positions 4 x 4 -> 4 x 2, as for any other file
    load_weights(narrow, str(tmp_path / "augreg.npz"), resize="bicubic")
    wanted = resize_positions(square.pos_embed, (4, 4), (4, 2), mode="bicubic", antialias=True)
    torch.testing.assert_close(narrow.pos_embed.detach(), wanted)


def resize_positions(positions, old, new, **how):
    rest = positions[0, 1:].T.reshape(1, -1, *old)
    rest = F.interpolate(rest, size=new, **how).flatten(2).transpose(1, 2)
    return torch.cat((positions[:, :1], rest), dim=1).detach()


@torch.no_grad()
def test_position_resize(tmp_path):
    square = build_vit(img_size=(32, 32))
    torch.save(square.state_dict(), tmp_path / "square.pth")
    actual = {}
    for how in ("bicubic", "bilinear"):
        keys = ("MODEL.BACKBONE.PRETRAIN", True, "MODEL.BACKBONE.POSITION_RESIZE", how)
        actual[how] = build_from_config(
            tmp_path, *keys, *pretrain_path(tmp_path / "square.pth")
        ).pos_embed.detach()
    bicubic = resize_positions(square.pos_embed, (4, 4), (4, 2), mode="bicubic", antialias=True)
    torch.testing.assert_close(actual["bicubic"], bicubic)
    bilinear = fastreid_vit.resize_pos_embed(square.pos_embed, torch.empty(1, 9, 12), 4, 2)
    torch.testing.assert_close(actual["bilinear"], bilinear)


@pytest.mark.parametrize(
    ("count", "own", "trust_own", "grid"),
    [
        (196, (16, 8), False, (14, 14)),  # ImageNet's 224 x 224
        (128, (16, 8), False, (16, 8)),
        (128, (21, 10), True, (16, 8)),  # trained without, loaded with a sliding window
        (210, (16, 8), True, (21, 10)),
        (196, (28, 7), False, (14, 14)),
        (196, (28, 7), True, (28, 7)),
        (196, (16, 8), True, (14, 14)),
    ],
)
def test_grid_of_a_file(count, own, trust_own, grid):
    assert guess_grid(count, own, trust_own=trust_own) == grid


@torch.no_grad()
def test_camera_embedding_is_loaded_or_initialized(tmp_path, caplog):
    source = build_vit(num_cameras=3)
    torch.save(add_prefix(source.state_dict(), "base."), tmp_path / "sie.pth")
    same = build_vit(num_cameras=3)
    load_weights(same, str(tmp_path / "sie.pth"), resize="bicubic")
    assert torch.equal(same.sie_embed, source.sie_embed)
    torch.save(build_vit().state_dict(), tmp_path / "plain.pth")
    own = same.sie_embed.clone()
    logging.getLogger("occluded_reid").propagate = True
    with caplog.at_level(logging.INFO):
        load_weights(same, str(tmp_path / "plain.pth"), resize="bicubic")
    assert torch.equal(same.sie_embed, own)
    assert "plain.pth has no camera embedding: it starts from random values" in caplog.text


def write_broken_file(kind, folder):
    """Write a file that cannot be loaded; return its path."""
    path = folder / f"{kind.replace(' ', '_')}.pth"
    weights = dict(build_vit().state_dict())
    if kind == "missing key":
        del weights["blocks.1.mlp.fc2.bias"]
    elif kind == "left-over key":
        weights["blocks.2.norm1.bias"] = torch.ones(12)
    elif kind == "shape":
        weights["norm.weight"] = torch.ones(5)
    elif kind == "many":
        weights = {"a": torch.ones(1)}
    elif kind == "cameras":
        weights["sie_embed"] = torch.ones(6, 1, 12)
    elif kind == "objects":
        weights = {"model": weights, "path": Path("x")}
    elif kind == "empty":
        weights = {"model": {"epoch": 3}}
    elif kind == "list":
        weights = [torch.ones(1)]
    if kind == "garbage":
        path.write_bytes(b"no weights at all" * 9)
    elif kind == "cut":
        torch.save(weights, path)
        path.write_bytes(path.read_bytes()[:500])
    elif kind.startswith("npz"):
        path = path.with_suffix(".npz")
        content = to_google_format(build_vit().state_dict())
        if kind == "npz blocks":
            content = {k: v for k, v in content.items() if "encoderblock_1/" not in k}
        elif kind == "npz key":
            del content["Transformer/encoder_norm/scale"]
        np.savez(path, **content) if kind != "npz garbage" else path.write_bytes(b"PK")
    elif kind == "safetensors":
        path = path.with_suffix(".safetensors")
        path.write_bytes(b"x" * 99)
    elif kind != "gone":
        torch.save(weights, path)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("gone", r"there are no pretrained weights .*gone.pth \(MODEL.BACKBONE.PRETRAIN_PATH\)"),
        ("missing key", "does not fit the backbone: blocks.1.mlp.fc2.bias is not in the file"),
        ("left-over key", "does not fit the backbone: blocks.2.norm1.bias is not in the model"),
        ("shape", r"norm.weight is \(5,\) in the file, \(12,\) in the model"),
        ("many", "cls_token is not in the file; .*; and 26 more. Does MODEL.BACKBONE"),
        ("cameras", "sie_embed is not in the model.*CAMERA_EMBEDDING"),
        ("objects", "objects.pth .*can run code .*import_checkpoint.py --trust-checkpoint"),
        ("empty", "empty.pth holds no weights: neither a state dict"),
        ("list", "list.pth holds no weights"),
        ("garbage", "garbage.pth is no checkpoint"),
        ("cut", "cut.pth is no checkpoint or is damaged"),
        ("npz blocks", "npz_blocks.npz does not fit .*blocks.1.norm1.weight is not in the file"),
        ("npz key", "npz_key.npz does not fit the backbone: norm.weight is not in the file"),
        ("npz garbage", "npz_garbage.npz holds no weights, is damaged"),
        ("safetensors", "safetensors.safetensors holds no weights, is damaged"),
    ],
)
def test_broken_weights_raise(tmp_path, kind, message):
    path = write_broken_file(kind, tmp_path)
    with pytest.raises(UserError, match=message):
        build_from_config(tmp_path, "MODEL.BACKBONE.PRETRAIN", True, *pretrain_path(path))


@torch.no_grad()
def test_weights_are_downloaded_by_timm(tmp_path, monkeypatch):
    source, asked = build_vit(), []

    def create_model(name, **options):
        asked.append((name, options))
        return source

    monkeypatch.setattr(timm, "create_model", create_model)
    keys = ("MODEL.BACKBONE.PRETRAIN", True, "MODEL.BACKBONE.PRETRAIN_NAME", "vit_x")
    model = build_from_config(tmp_path, *keys)
    assert asked == [("vit_x", {"pretrained": True, "num_classes": 0})]
    assert torch.equal(model.pos_embed, source.pos_embed)


def test_failed_download_names_the_file(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(timm, "create_model", offline)
    keys = ("MODEL.BACKBONE.PRETRAIN", "True", "MODEL.BACKBONE.DEPTH", "tiny")
    cfg = load_config("", ["MODEL.DEVICE", "cpu", *keys, "MODEL.BACKBONE.FEAT_DIM", "192"])
    with pytest.raises(UserError) as caught:
        backbones.build_token_vit_backbone(cfg)
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    message = str(caught.value)
    assert f"weights {name} (OSError: no route to host). Download" in message
    assert f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors" in message
    assert "MODEL.BACKBONE.PRETRAIN_PATH path/to/file" in message and "and more" not in message
    with pytest.raises(UserError, match="jx_vit_base_p16_224-80ecf9dd.pth"):
        download_weights("vit_base_patch16_224.orig_in21k_ft_in1k")


def test_base_uses_transreid_weights(monkeypatch):
    cfg = load_config("", ["MODEL.BACKBONE.DEPTH", "base", "MODEL.DEVICE", "cpu"])
    assert backbones._pretrain_name(cfg.MODEL.BACKBONE) == "vit_base_patch16_224.orig_in21k_ft_in1k"


def test_unknown_weights_raise(tmp_path):
    keys = ("MODEL.BACKBONE.PRETRAIN", True)
    with pytest.raises(UserError, match="no known weights fit DEPTH custom"):
        build_from_config(tmp_path, *keys)
    with pytest.raises(UserError, match="timm has no weights vit_x"):
        build_from_config(tmp_path, *keys, "MODEL.BACKBONE.PRETRAIN_NAME", "vit_x")


# ---------------------------------------------------------------------------- memory in training


def run_step(model, batch, dtype):
    """Return the output, all gradients, and the bytes kept for the backward pass."""
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            output = model(batch)
        output.float().square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    return output, gradients, sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_lean_mlp_saves_less_with_equal_gradients(dtype):
    model, batch = build_vit().train(), random_images()
    lean = run_step(model, batch, dtype)
    for block in model.blocks:
        block.mlp.__class__ = Mlp
    plain = run_step(model, batch, dtype)
    assert torch.equal(lean[0], plain[0])
    assert all(torch.equal(one, other) for one, other in zip(lean[1], plain[1], strict=True))
    hidden_bytes = len(batch) * 9 * 48 * (4 if dtype is None else 2)  # 9 tokens of four times 12
    assert plain[2] - lean[2] == 2 * hidden_bytes


def test_lean_mlp_drops_as_timm():
    model, batch = build_vit(proj_drop_rate=0.5).train(), random_images()
    outputs = []
    for kind in (LeanMlp, Mlp):
        for block in model.blocks:
            block.mlp.__class__ = kind
        torch.manual_seed(0)
        outputs.append(model(batch))
    assert torch.equal(*outputs)
