"""tools/import_checkpoint.py: what imported weights compute, and what happens to every key."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastreid.modeling.backbones import build_backbone
from fastreid.modeling.meta_arch import build_model
from runs import load_tool
from torch import nn
from vit_weights import add_prefix, build_vit, to_google_format

from occluded_reid.checkpoint.checkpointer import Checkpointer
from occluded_reid.checkpoint.pretrained import load_weights
from occluded_reid.config import load_config
from occluded_reid.config.methods import installed_methods
from occluded_reid.modeling.build import build_inference_model, build_untrained
from occluded_reid.utils.errors import UserError

tool = load_tool("import_checkpoint")

CHANNELS, PARTS, BLOCKS, IDENTITIES, HEADS = 16, 4, 2, 12, 4
FED = """
MODEL:
  META_ARCHITECTURE: FED
  DEVICE: cpu
  BACKBONE:
    {NAME: build_token_vit_backbone, DEPTH: custom, FEAT_DIM: 16, NUM_BLOCKS: 2, NUM_HEADS: 4,
     PATCH_SIZE: [8, 8], STRIDE_SIZE: [8, 8], DROP_PATH_RATIO: 0.0}
  FED: {ATTENTION_SCALE: 0.70710678}
  PIXEL_MEAN: [127.5, 127.5, 127.5]
  PIXEL_STD: [127.5, 127.5, 127.5]
INPUT: {SIZE_TRAIN: [32, 16], SIZE_TEST: [32, 16]}
"""
BACKBONE = """
MODEL:
  DEVICE: cpu
  BACKBONE:
    {NAME: build_class_token_vit_backbone, DEPTH: custom, FEAT_DIM: 12, NUM_BLOCKS: 2,
     NUM_HEADS: 3, PATCH_SIZE: [8, 8], STRIDE_SIZE: [8, 8]}
  HEADS: {POOL_LAYER: Identity, WITH_BNNECK: True}
INPUT: {SIZE_TRAIN: [32, 16], SIZE_TEST: [32, 16]}
"""
RESNET = """
MODEL:
  DEVICE: cpu
  BACKBONE: {NAME: build_resnet_backbone, DEPTH: 18x, FEAT_DIM: 512}
  HEADS: {WITH_BNNECK: True}
"""
OSNET = """
_BASE_: {base}
MODEL: {{DEVICE: cpu, BACKBONE: {{DEPTH: x0_25}}}}
"""


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def write_config(folder: Path, content: str) -> str:
    path = folder / "model.yml"
    path.write_text(content)
    return str(path)


def run(folder: Path, source: str, content, *more: str, config: str = "") -> dict:
    """Write ``content`` to a file, convert it, return the report."""
    given = folder / "given.pth"
    torch.save(content, given)
    words = ["--source", source, "--input", str(given), "--output", str(folder / "made.pth")]
    words += ["--report", str(folder / "report.json"), *more]
    words += ["--config-file", write_config(folder, config)] if config else []
    assert tool.command(words) == 0
    return json.loads((folder / "report.json").read_text())


def fates(report: dict) -> dict[str, str]:
    return {entry["key"]: entry["fate"] for entry in report["keys"]}


def fill_statistics(model: nn.Module) -> None:
    """Give the batch normalizations the statistics of a trained network."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for values in (module.running_mean, module.weight.data, module.bias.data):
                values.normal_()
            module.running_var.uniform_(0.5, 2)


def test_torchreid_osnet_gives_torchreids_features(tmp_path):
    config = OSNET.format(base=Path(__file__).parents[2] / "configs" / "Base-OSNet.yml")
    cfg = load_config(write_config(tmp_path, config), [])
    network = build_backbone(cfg).eval()  # torchreid's names and layers, up to the pooling
    fc = nn.Sequential(nn.Linear(128, 512), nn.BatchNorm1d(512), nn.ReLU()).eval()
    fill_statistics(network)
    fill_statistics(fc)
    states = network.state_dict() | add_prefix(fc.state_dict(), "fc.")
    states |= {"classifier.weight": torch.randn(5, 512), "classifier.bias": torch.randn(5)}
    content = {"state_dict": add_prefix(states, "module."), "epoch": 3}
    report = run(tmp_path, "torchreid", content, config=config)
    assert report["counts"]["left out"] == 2  # the classifier's bias, epoch
    model = build_inference_model(cfg, str(tmp_path / "made.pth"))
    images = 255 * torch.rand(2, 3, 256, 128)
    mean, std = (
        torch.tensor(each).view(3, 1, 1) for each in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    )
    with torch.no_grad():
        expected = fc(network((images - mean) / std).mean((2, 3)))
        found = model({"images": images})
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    trained = torch.load(tmp_path / "made.pth", weights_only=True)["model"]
    assert torch.equal(trained["heads.weight"], states["classifier.weight"])


def test_torchreid_networks_without_fc_keep_their_names(tmp_path):
    states = {"conv1.weight": torch.ones(1), "layer1.0.bn1.bias": torch.ones(1)}
    report = run(tmp_path, "torchreid", states | {"classifier.weight": torch.ones(2, 1)})
    names = [name for entry in report["keys"] for name in entry["now"]]
    assert names == ["backbone.conv1.weight", "backbone.layer1.0.bn1.bias", "heads.weight"]


# ------------------------------------------------------- the authors' network, written anew


def official_shapes(c=CHANNELS, p=PARTS, blocks=BLOCKS, ids=IDENTITIES, patch=8, tokens=8, fc=10):
    """The keys of the authors' checkpoints and their shapes."""
    shapes = {"cls_token": (1, 1, c), "pos_embed": (1, tokens + 1, c)}
    shapes |= {"patch_embed.proj.weight": (c, 3, patch, patch), "patch_embed.proj.bias": (c,)}
    for n in range(blocks):
        for name, out, into in (
            ("attn.qkv", 3 * c, c), ("attn.proj", c, c),
            ("mlp.fc1", 4 * c, c), ("mlp.fc2", c, 4 * c),
        ):  # fmt: skip
            shapes |= {f"blocks.{n}.{name}.weight": (out, into), f"blocks.{n}.{name}.bias": (out,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{n}.{name}.weight": (c,), f"blocks.{n}.{name}.bias": (c,)}
    shapes |= {"norm.weight": (c,), "norm.bias": (c,), "fc.weight": (fc, c), "fc.bias": (fc,)}
    shapes = {f"base.{key}": shape for key, shape in shapes.items()}
    d = p * c
    shapes |= {"cross_attention.q.weight": (d, d), "cross_attention.kv.weight": (2 * d, d)}
    shapes |= {"cross_attention.proj.weight": (d, d), "cross_attention.proj.bias": (d,)}
    for n in range(p):
        scorer = f"mask_detection.{n}."
        shapes |= {f"{scorer}0.weight": (c // 4, c), f"{scorer}0.bias": (c // 4,)}
        shapes |= {f"{scorer}1.weight": (c // 4,), f"{scorer}1.bias": (c // 4,)}
        shapes |= {f"{scorer}2.weight": (1, c // 4), f"{scorer}2.bias": (1,)}
        for neck in ("bottleneck_local", "bottleneck_local_stage2"):
            for kind in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{neck}.{n}.{kind}"] = (c,)
            shapes[f"{neck}.{n}.num_batches_tracked"] = ()
        shapes[f"classifier_local.{n}.weight"] = (ids, c)
    shapes |= {"classifier1.weight": (ids, d), "classifier2.weight": (ids, d)}
    shapes["classifier3.weight"] = (ids, c)
    for ffn in ("ffn2.layers2", "ffn3.layers2"):
        shapes |= {f"{ffn}.fn.net.0.weight": (8 * c, c), f"{ffn}.fn.net.0.bias": (8 * c,)}
        shapes |= {f"{ffn}.fn.net.3.weight": (c, 4 * c), f"{ffn}.fn.net.3.bias": (c,)}
        shapes |= {f"{ffn}.norm.weight": (c,), f"{ffn}.norm.bias": (c,)}
    return shapes


def official_weights(**sizes) -> dict[str, torch.Tensor]:
    weights = {}
    for key, shape in official_shapes(**sizes).items():
        weights[key] = 0.3 * torch.randn(shape)
        if key.endswith("running_var"):
            weights[key] = torch.rand(shape) + 0.5
        elif key.endswith("num_batches_tracked"):
            weights[key] = torch.tensor(7)
    return weights


def dense(w, name, x):
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))


def normed(w, name, x, eps=1e-5):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def official_tokens(w, images):
    """All tokens (B, 1 + T, C) of images in 0-255, mean and deviation 127.5."""
    x = F.conv2d(images / 127.5 - 1, w["base.patch_embed.proj.weight"],
                 w["base.patch_embed.proj.bias"], stride=8)  # fmt: skip
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([w["base.cls_token"].expand(len(x), 1, -1), x], dim=1) + w["base.pos_embed"]
    for n in range(BLOCKS):
        block = f"base.blocks.{n}"
        qkv = dense(w, f"{block}.attn.qkv", normed(w, f"{block}.norm1", x, 1e-6))
        q, k, v = qkv.unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(2, 3) / math.sqrt(CHANNELS / HEADS)).softmax(dim=3)
        x = x + dense(w, f"{block}.attn.proj", (weights @ v).transpose(1, 2).flatten(2))
        hidden = F.gelu(dense(w, f"{block}.mlp.fc1", normed(w, f"{block}.norm2", x, 1e-6)))
        x = x + dense(w, f"{block}.mlp.fc2", hidden)
    return normed(w, "base.norm", x, 1e-6)


def official_scores_and_parts(w, tokens):
    parts = tokens[:, 1:].unflatten(1, (PARTS, -1)).mean(dim=2)
    scores = []
    for n in range(PARTS):
        hidden = normed(w, f"mask_detection.{n}.1", dense(w, f"mask_detection.{n}.0", parts[:, n]))
        scores.append(dense(w, f"mask_detection.{n}.2", hidden).sigmoid())
    scores = torch.cat(scores, dim=1)
    return scores, scores[..., None] * parts


def official_neck(w, parts, training):
    each = []
    for n in range(PARTS):
        mean, var = (w[f"bottleneck_local.{n}.running_{kind}"] for kind in ("mean", "var"))
        if training:
            mean, var = parts[:, n].mean(dim=0), parts[:, n].var(dim=0, correction=0)
        scaled = (parts[:, n] - mean) / torch.sqrt(var + 1e-5)
        each.append(scaled * w[f"bottleneck_local.{n}.weight"] + w[f"bottleneck_local.{n}.bias"])
    return torch.cat(each, dim=1)


def official_diffusion(w, embedding, scores, memory, identities):
    """One branch: 9 nearest centres, less the own or the last; heads are transposed; two FFNs."""
    centres = F.normalize(memory, dim=1)
    nearest = (F.normalize(embedding, dim=1) @ centres.T).topk(9, dim=1).indices.tolist()
    rows = [
        [i for i in row if i != own] if own in row else row[:8]
        for row, own in zip(nearest, identities.tolist(), strict=True)
    ]
    size = embedding.shape[1] // 8
    q = dense(w, "cross_attention.q", embedding).unflatten(1, (8, size))
    k, v = (
        dense(w, "cross_attention.kv", centres[torch.tensor(rows)])
        .unflatten(2, (2, 8, size))
        .unbind(2)
    )
    logits = torch.einsum("bhd,bkhd->bhk", q, k) / math.sqrt(CHANNELS / 8)
    mixed = torch.einsum("bhk,bkhd->bhd", logits.softmax(dim=2), v)
    mixed = mixed.transpose(0, 1).reshape(len(mixed), -1)
    x = dense(w, "cross_attention.proj", mixed).unflatten(1, (PARTS, -1))
    person = embedding.unflatten(1, (PARTS, -1))
    for ffn in ("ffn2.layers2", "ffn3.layers2"):
        if ffn.startswith("ffn3"):
            x = scores[..., None] * x + person
        value, gate = dense(w, f"{ffn}.fn.net.0", normed(w, f"{ffn}.norm", x)).chunk(2, dim=2)
        x = dense(w, f"{ffn}.fn.net.3", value * F.gelu(gate))
    return official_neck(w, x, training=True)


def official_contrast(features, memory, identities):
    exps = (F.normalize(features, dim=1) @ F.normalize(memory, dim=1).T / 0.05).exp()
    shares = exps / (exps.sum(dim=1, keepdim=True) + 1e-6)
    return F.nll_loss((shares + 1e-6).log(), identities)


def official_losses(w, memory, batch, labels):
    """The losses of one step by our names, and the features that update the memory."""
    losses, taken = {}, {}
    weights = {"holistic": (1.0, torch.ones_like(labels)), "occluded": (0.3, labels)}
    for branch, key in (("holistic", "images"), ("occluded", "occluded_images")):
        contrast, visible = weights[branch]
        tokens, who = official_tokens(w, batch[key]), batch["targets"]
        scores, parts = official_scores_and_parts(w, tokens)
        erased = official_neck(w, parts, training=True)
        diffused = official_diffusion(w, erased, scores, memory, who)
        losses[f"visibility_{branch}"] = F.mse_loss(scores, visible)
        for name, feature, number in (
            ("erased", erased, 1), ("diffused", diffused, 2), ("class_token", tokens[:, 1], 3)
        ):  # fmt: skip
            logits = dense(w, f"classifier{number}", feature)
            losses[f"identity_{name}_{branch}"] = 0.5 * F.cross_entropy(logits, who)
        losses[f"contrast_erased_{branch}"] = contrast * official_contrast(erased, memory, who)
        losses[f"contrast_diffused_{branch}"] = 0.5 * official_contrast(diffused, memory, who)
        taken[branch] = (diffused, erased)
    return {f"loss_{name}": value for name, value in losses.items()}, taken["holistic"]


# -------------------------------------------------------------------------------- official-fed


def test_an_official_checkpoint_gives_the_official_feature(tmp_path):
    weights = official_weights()
    report = run(tmp_path, "official-fed", add_prefix(weights, "module."), config=FED)
    cfg = load_config(write_config(tmp_path, FED), [], add_keys=installed_methods())
    model = build_inference_model(cfg, str(tmp_path / "made.pth"))
    images = torch.rand(5, 3, 32, 16) * 255
    with torch.no_grad():
        actual = model({"images": images})
    scores, parts = official_scores_and_parts(weights, official_tokens(weights, images))
    expected = official_neck(weights, parts, training=False)
    torch.testing.assert_close(actual.features.flatten(1), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual.visibility, scores, rtol=1e-5, atol=1e-6)
    assert scores.std() > 0.05 and expected.std() > 0.1
    fate_of = fates(report)
    assert fate_of.keys() == {f"module.{key}" for key in weights}
    assert fate_of["module.base.fc.weight"] == fate_of["module.classifier1.weight"] == "left out"
    assert fate_of["module.bottleneck_local_stage2.0.weight"] == "left out"
    assert fate_of["module.base.norm.weight"] == "renamed"
    assert fate_of["module.bottleneck_local.3.running_mean"] == "reshaped"
    assert all(entry["why"] for entry in report["keys"] if entry["fate"] == "left out")


@pytest.mark.parametrize("with_memory", [True, False])
def test_a_training_step_of_fedofficial_gives_the_official_losses(tmp_path, with_memory):
    weights, memory = official_weights(), torch.randn(IDENTITIES, PARTS * CHANNELS)
    torch.save(memory, tmp_path / "memory.pth")
    more = ["--for", "FEDOfficial"] + ["--memory", str(tmp_path / "memory.pth")] * with_memory
    run(tmp_path, "official-fed", add_prefix(weights, "module."), *more, config=FED)
    words = ["MODEL.META_ARCHITECTURE", "FEDOfficial", "MODEL.HEADS.NUM_CLASSES", str(IDENTITIES)]
    cfg = load_config(write_config(tmp_path, FED), words, add_keys=installed_methods())
    model = build_untrained(cfg)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # what a training's checkpointer has
    loader = Checkpointer(model, num_classes=IDENTITIES, optimizer=optimizer)
    loader.resume_or_load(str(tmp_path / "made.pth"), resume=False)
    assert bool(model.erased_memory.initialized) == with_memory
    if not with_memory:
        return
    rng = torch.Generator().manual_seed(3)
    images = torch.rand(6, 3, 32, 16, generator=rng) * 255
    occluded = images.clone()
    occluded[:, :, 8:16] = 20.0  # the second of four stripes
    batch = {"images": images, "occluded_images": occluded}
    batch["targets"] = torch.tensor([0, 0, 5, 5, 11, 11])
    losses = model.train()(batch)
    official = {
        key: value.requires_grad_(value.is_floating_point()) for key, value in weights.items()
    }
    labels = torch.tensor([[1.0, 0.0, 1.0, 1.0]]).expand(6, -1)
    expected, taken = official_losses(official, memory, batch, labels)
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    for name, theirs in (
        ("diffusion.attention.query.weight", "cross_attention.q.weight"),
        ("heads.erasing.scorers.2.0.weight", "mask_detection.2.0.weight"),
        ("backbone.blocks.0.attn.qkv.weight", "base.blocks.0.attn.qkv.weight"),
        ("classifiers.diffused.weight", "classifier2.weight"),
    ):
        ours = model.get_parameter(name).grad
        torch.testing.assert_close(ours, official[theirs].grad, rtol=1e-3, atol=1e-5, msg=name)
    for features in taken:  # image by image; what a loss used last is written first
        for feature, who in zip(features.detach(), batch["targets"].tolist(), strict=True):
            memory[who] = 0.2 * memory[who] + 0.8 * feature
    torch.testing.assert_close(model.diffused_memory.centres, memory, rtol=1e-4, atol=1e-4)


def test_misfits_are_named_and_nothing_is_written(tmp_path, capsys):
    weights = official_weights()
    weights["mask_detection.1.0.weight"] = torch.ones(5, CHANNELS)
    del weights["base.norm.bias"]
    weights["something.new"] = torch.ones(2)
    torch.save(weights, tmp_path / "given.pth")
    words = ["--source", "official-fed", "--input", str(tmp_path / "given.pth")]
    words += ["--output", str(tmp_path / "made.pth"), "--report", str(tmp_path / "report.json")]
    assert tool.command([*words, "--config-file", write_config(tmp_path, FED)]) == 2
    error = capsys.readouterr().err
    assert "heads.erasing.scorers.1.0.weight is (5, 16) in the file, (4, 16) in the model" in error
    assert "backbone.norm.bias is not in the file" in error
    assert not (tmp_path / "made.pth").exists()
    entries = {
        each["key"]: each for each in json.loads((tmp_path / "report.json").read_text())["keys"]
    }
    assert (
        entries["mask_detection.1.0.weight"]["why"] == "(5, 16) in the file, (4, 16) in the model"
    )
    assert entries["something.new"]["why"] == "the model has no such weight"
    torch.save({"a": torch.ones(1)}, tmp_path / "given.pth")
    assert tool.command(words) == 2
    assert "not of the authors' FED" in capsys.readouterr().err
    torch.save(torch.ones(3, 3), tmp_path / "memory.pth")
    torch.save(official_weights(), tmp_path / "given.pth")
    words += ["--for", "FEDOfficial", "--memory", str(tmp_path / "memory.pth")]
    assert tool.command(words) == 2
    assert "the memory is (3, 3); for these weights it must be (12, 64)" in capsys.readouterr().err


# ------------------------------------------------------------------------------ other sources


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".pth", ".npz", ".safetensors"])
def test_imagenet_weights_are_resized_to_the_grid_of_the_model(tmp_path, suffix):
    from safetensors.torch import save_file

    square = build_vit(img_size=(32, 32))
    weights = {key: value.clone() for key, value in square.state_dict().items()}
    given = tmp_path / f"given{suffix}"
    head = {"head.weight": torch.ones(7, 12), "head.bias": torch.ones(7)}
    if suffix == ".pth":
        torch.save({"model": {**weights, **head}, "epoch": 3}, given)
    elif suffix == ".safetensors":
        save_file({**weights, **head}, given)
    else:
        np.savez(given, **to_google_format(weights), **{"head/kernel": np.ones((12, 7))})
    words = ["--source", "timm", "--input", str(given), "--output", str(tmp_path / "made.pth")]
    words += ["--report", str(tmp_path / "report.json")]
    assert tool.command([*words, "--config-file", write_config(tmp_path, BACKBONE)]) == 0
    direct, through = build_vit(), build_vit()
    load_weights(direct, str(given), resize="bicubic")
    load_weights(through, str(tmp_path / "made.pth"), resize="bicubic")
    for name, value in direct.state_dict().items():
        torch.testing.assert_close(through.state_dict()[name], value, rtol=0, atol=0)
    entries = json.loads((tmp_path / "report.json").read_text())["keys"]
    entry_of = {each["key"]: each for each in entries}
    positions = "Transformer/posembed_input/pos_embedding" if suffix == ".npz" else "pos_embed"
    assert entry_of[positions]["why"] == "4 x 4 -> 4 x 2, bicubic"
    assert entry_of[positions]["now"] == {"backbone.pos_embed": [1, 9, 12]}
    if suffix == ".npz":
        query = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/kernel"
        assert "joined" in entry_of[query]["why"] and entry_of["head/kernel"]["fate"] == "left out"
        assert list(entry_of[query]["now"]) == ["backbone.blocks.1.attn.qkv.weight"]
    if suffix == ".pth":
        assert entry_of["epoch"]["why"] == "no weight of the model"


def test_without_a_configuration_weights_are_only_renamed(tmp_path):
    square = build_vit(img_size=(32, 32))
    jpm = {"b1.0.norm1.weight": torch.ones(12), "classifier.weight": torch.ones(5, 12)}
    content = add_prefix({**add_prefix(square.state_dict(), "base."), **jpm}, "module.")
    report = run(tmp_path, "transreid", content)
    made = torch.load(tmp_path / "made.pth")["model"]
    assert made.keys() == add_prefix(square.state_dict(), "backbone.").keys()
    assert made["backbone.pos_embed"].shape == (1, 17, 12)
    fate_of = fates(report)
    assert fate_of["module.b1.0.norm1.weight"] == fate_of["module.classifier.weight"] == "left out"
    assert fate_of["module.base.norm.bias"] == "renamed" and len(fate_of) == len(content)


@pytest.mark.parametrize("with_model_key", [True, False])
def test_a_model_of_fastreids_zoo(tmp_path, with_model_key):
    words = ["MODEL.HEADS.NUM_CLASSES", "7"]
    cfg = load_config(write_config(tmp_path, RESNET), words, add_keys=installed_methods())
    model = build_untrained(cfg)
    state = dict(model.state_dict())
    state["heads.classifier.weight"] = state.pop("heads.weight")  # as in its older files
    content = {**state, "pixel_mean": torch.ones(1, 3, 1, 1)}
    given = {"model": content, "iteration": 3} if with_model_key else content
    torch.save(given, tmp_path / "old.pth")
    command = f"import_checkpoint.py --source fastreid --input {tmp_path}/old.pth --output NEW.pth"
    with pytest.raises(UserError, match=f"does not fit the model: .*{re.escape(command)}$"):
        Checkpointer(build_untrained(cfg), num_classes=7).load(str(tmp_path / "old.pth"))
    report = run(tmp_path, "fastreid", given, config=RESNET)
    again = build_untrained(cfg)
    optimizer = torch.optim.SGD(again.parameters(), lr=0.1)
    Checkpointer(again, num_classes=7, optimizer=optimizer).resume_or_load(
        str(tmp_path / "made.pth"), resume=False
    )
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    fate_of = fates(report)
    assert fate_of["pixel_mean"] == "left out" and fate_of["heads.classifier.weight"] == "renamed"
    assert fate_of["backbone.conv1.weight"] == "used"


def test_fastreid_starts_from_the_imported_torchvision_resnet(tmp_path):
    from torchvision.models import resnet18

    theirs = resnet18()
    old = {k: v for k, v in theirs.state_dict().items() if not k.endswith("num_batches_tracked")}
    report = run(tmp_path, "torchvision", old, config=RESNET)
    assert report["faults"] == [] and fates(report)["fc.weight"] == "left out"
    words = ["MODEL.BACKBONE.PRETRAIN", "True"]
    words += ["MODEL.BACKBONE.PRETRAIN_PATH", str(tmp_path / "made.pth")]
    cfg = load_config(write_config(tmp_path, RESNET), words, add_keys=installed_methods())
    actual = build_model(cfg).backbone.state_dict()
    for name, value in theirs.state_dict().items():
        assert name.startswith("fc.") or torch.equal(actual[name], value), name


def test_a_file_that_could_run_code_is_only_read_if_trusted(tmp_path, capsys):
    content = {"model": dict(build_vit().state_dict()), "args": Path("x")}
    torch.save(content, tmp_path / "given.pth")
    words = ["--source", "timm", "--input", str(tmp_path / "given.pth")]
    words += ["--output", str(tmp_path / "made.pth")]
    assert tool.command(words) == 2
    assert "--trust-checkpoint" in capsys.readouterr().err
    assert tool.command(["--trust-checkpoint", *words]) == 0
