"""The configurations of projects/AONet train with the losses of their rows; see test_paper_rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fastreid.config import CfgNode
from fastreid.utils.events import EventStorage
from tiny_runs import DIM

from aonet_plugin import add_aonet_config
from occluded_reid.config import load_config
from occluded_reid.modeling.build import build_model

FOLDER = Path(__file__).parents[2] / "projects" / "AONet" / "configs"
NAMES = sorted(
    str(path.relative_to(FOLDER).with_suffix(""))
    for path in FOLDER.rglob("*.yml")
    if not path.stem.startswith("Base-")
)
SIZE = ("INPUT.SIZE_TRAIN", [64, 32])
TINY = ("MODEL.BACKBONE.NAME", "build_tiny_map_backbone", "MODEL.BACKBONE.FEAT_DIM", DIM, *SIZE)
UNTRAINED = ("MODEL.BACKBONE.PRETRAIN", False, *SIZE)
SMALL = ("MODEL.BACKBONE.DEPTH", "18x", "MODEL.BACKBONE.FEAT_DIM", 512, *UNTRAINED)
NETWORKS = {"occ_duke": SMALL, "occ_duke_ibn": SMALL, "synthetic": UNTRAINED}


def config(name: str, *overrides: object) -> CfgNode:
    words = ["MODEL.DEVICE", "cpu", "MODEL.HEADS.NUM_CLASSES", "12", *map(str, overrides)]
    return load_config(str(FOLDER / f"{name}.yml"), words, add_keys=[add_aonet_config])


def train_one_step(cfg: CfgNode) -> set[str]:
    model = build_model(cfg).train()
    images = torch.rand(2, 3, *cfg.INPUT.SIZE_TRAIN) * 255
    with EventStorage():
        losses = model({"images": images, "targets": torch.tensor([0, 5])})
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    return set(losses)


BEFORE, AFTER, ORTHOGONAL = "loss_identity_before", "loss_identity_after", "loss_orthogonal"
TERMS = {
    "ablation/base_gap": {"loss_cls"},
    "ablation/base_slfea": {BEFORE},
    "ablation/base_satt": {BEFORE, AFTER},
    "ablation/aonet_dagger": {BEFORE, AFTER},
    "ablation/aonet_double_dagger": {BEFORE, AFTER},
    "ablation/base_max": {BEFORE, AFTER},
    "ablation/base_regl": {BEFORE, AFTER, "loss_overlap"},
}


@pytest.mark.parametrize("name", NAMES)
def test_each_config_trains_with_the_losses_of_its_table_row(name):
    row = TERMS.get(name.removeprefix("synthetic_"), {BEFORE, AFTER, ORTHOGONAL})
    assert train_one_step(config(name, *NETWORKS.get(name, TINY))) == row


def test_full_ablation_row_is_aonet():
    rows = [config(name).clone() for name in ("ablation/aonet", "ablation/k6", "occ_duke")]
    for row in rows:
        row.defrost()
        row.OUTPUT_DIR = "same"
    assert rows[0] == rows[1] == rows[2]


def test_every_config_has_its_own_output_dir():
    folders = [config(name).OUTPUT_DIR for name in NAMES]
    assert len(set(folders)) == len(NAMES)
    assert all(folder.startswith("logs/aonet/") for folder in folders)
