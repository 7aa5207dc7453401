"""Costs of a model, by hand and by tools/analyze_model.py; pretrained weights are never read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from runs import TINY, load_tool
from torch import nn

from occluded_reid.deploy.complexity import measure_complexity

analyze_model = load_tool("analyze_model")
AONET = Path(__file__).parents[2] / "projects" / "AONet" / "configs" / "occ_duke.yml"


class Small(nn.Module):
    """A convolution, an attention of two heads over its pixels, a memory, two classifiers."""

    training_only = ("classifier", "bank")

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2, bias=False), nn.BatchNorm2d(4))
        self.heads = nn.Linear(4, 5)
        self.classifier = nn.Linear(5, 7, bias=False)
        self.twin = self.classifier
        self.register_buffer("bank", torch.zeros(7, 5))
        self.register_buffer("memory", torch.zeros(2, 4))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(3), persistent=False)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        pixels = self.backbone(batch["images"]).flatten(2).transpose(1, 2)
        heads = pixels.unflatten(2, (2, 2)).transpose(1, 2)  # (B, 2, T, 2)
        mixed = F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)
        return self.heads(mixed.softmax(dim=2).sum(dim=1))


def test_the_cost_of_a_small_model_by_hand():
    cost = measure_complexity(Small(), (8, 4))
    convolution, norm, products, linear = 8 * 4 * 12, 2 * 8 * 4, 2 * 2 * 8 * 8 * 2, 4 * 5
    inference = 3 * 4 * 4 + 2 * 4 + (4 * 5 + 5) + 2 * 4
    assert cost.macs_inference == convolution + norm + products + linear
    assert cost.params_inference == inference
    assert cost.params_total == inference + 7 * 5 + 7 * 5  # the classifier has two names
    costs = {each.name: each for each in cost.modules}
    assert costs["backbone.0"].macs == convolution and costs["heads"].macs == linear
    assert costs["memory"] == ("memory", 8, 0, False)
    assert costs["bank"] == ("bank", 35, 0, True) and costs["classifier"].training_only
    assert "softmax" in cost.not_counted
    assert "scaled_dot_product_attention" not in cost.not_counted


def test_the_parts_of_a_module_add_up():
    modules = measure_complexity(Small(), (8, 4)).modules
    whole = next(each for each in modules if each.name == "backbone")
    parts = [each for each in modules if each.name.startswith("backbone.")]
    assert len(parts) == 2
    assert sum(each.parameters for each in parts) == whole.parameters
    assert sum(each.macs for each in parts) == whole.macs


def test_aonet_is_printed_beside_table_7(tmp_path, capsys):
    file = tmp_path / "new" / "costs.json"
    words = ["--config-file", str(AONET), "--json", str(file)]
    # the pretrained weights do not exist
    words += ["MODEL.BACKBONE.PRETRAIN", "True", "MODEL.BACKBONE.PRETRAIN_PATH", "nothing.pth"]
    assert analyze_model.command(words) == 0
    content = json.loads(file.read_text())
    assert (content["params_total"], content["params_inference"]) == (30_219_841, 28_782_145)
    assert content["gmacs_inference"] == pytest.approx(4.105, abs=5e-4)
    assert content["paper"] == {"table": "Table 7", "gflops": 6.22, "params_in_millions": 30.22}
    assert content["input_size"] == [256, 128] and content["identities"] == 702
    captured = capsys.readouterr()
    for text in ("30,219,841", "28,782,145", "Table 7", "6.22", "702 identities, as published"):
        assert text in captured.out
    assert captured.out.count("Not counted: ") == 1 and "Unsupported" not in captured.err
    marked = re.findall(r"^\| ([\w.]+) .*\| training only \|$", captured.out, re.MULTILINE)
    assert marked == ["classifier", "classifier.weight"]


@pytest.fixture
def tiny(tmp_path) -> list[str]:
    file = tmp_path / "tiny.yml"
    file.write_text(TINY)
    return ["--config-file", str(file), "--json", str(tmp_path / "costs.json")]


@pytest.mark.parametrize(
    ("overrides", "identities", "text"),
    [
        ([], 751, "as published for Market1501"),
        (["MODEL.HEADS.NUM_CLASSES", "10"], 10, "10 identities, MODEL.HEADS.NUM_CLASSES"),
        (["DATASETS.NAMES", "('Market1501', 'OccludedDuke')"], 1453, "1,453 identities"),
        (
            ["DATASETS.NAMES", "('SyntheticOccluded',)", "DATASETS.SYNTHETIC.SIZE", "tiny"],
            8,
            "as published for SyntheticOccluded",
        ),
        (["DATASETS.NAMES", "('MyPeople',)"], 0, "none are published for MyPeople"),
    ],
)
def test_a_baseline(tmp_path, tiny, capsys, overrides, identities, text):
    assert analyze_model.command([*tiny, *overrides]) == 0
    printed = capsys.readouterr().out
    assert text in printed and "of the paper" not in printed
    content = json.loads((tmp_path / "costs.json").read_text())
    assert content["identities"] == identities and "paper" not in content
    assert content["params_total"] - content["params_inference"] == identities * 16
    training_only = [each["name"] for each in content["modules"] if each["training_only"]]
    assert training_only == (["heads.weight"] if identities else [])


def test_an_unknown_model_is_named(tiny, capsys):
    assert analyze_model.command([*tiny, "MODEL.META_ARCHITECTURE", "AONett"]) == 2
    assert "AONett" in capsys.readouterr().err
