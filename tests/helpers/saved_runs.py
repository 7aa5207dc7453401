"""Runs that look finished, without a training, and crops to embed with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aonet.tiny import aonet_run_cfg
from fastreid.config import CfgNode
from fed.tiny import fed_run_cfg
from PIL import Image
from runs import tiny_cfg
from torch import nn

from occluded_reid.checkpoint import zoo
from occluded_reid.checkpoint.checkpointer import Checkpointer
from occluded_reid.checkpoint.safetensors_file import write_safetensors
from occluded_reid.deploy import hub
from occluded_reid.modeling.build import build_untrained, remove_training_parts

CLASSES = ("MODEL.HEADS.NUM_CLASSES", 8)
MODELS: dict[str, Any] = {
    "baseline": lambda folder: tiny_cfg(folder, *CLASSES),
    "flip": lambda folder: tiny_cfg(folder, *CLASSES, "TEST.FLIP.ENABLED", True),
    "FED": lambda folder: fed_run_cfg(folder, *CLASSES),
    "AONet": lambda folder: aonet_run_cfg(folder, *CLASSES),
}


def save_run(cfg: CfgNode, *, seed: int = 0, name: str = "model_final") -> Path:
    """Write the files that a finished run leaves, without training."""
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    Checkpointer(build_untrained(cfg), str(folder)).save(name)
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


def make_zoo(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put an empty zoo in place of the package's; return its folder."""
    home = folder / "package" / "zoo"
    home.mkdir(parents=True)
    (home / "models.json").write_text('{"models": []}')
    monkeypatch.setattr(zoo, "HOME", home)
    return home


MEAN_OF_TIMM = (
    "MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.BACKBONE.TIMM_NAME", "test_resnet",
    "MODEL.BACKBONE.FEAT_DIM", 0, "MODEL.BACKBONE.LAST_STRIDE", 2, "MODEL.HEADS.POOL_LAYER",
    "GlobalAvgPool", "MODEL.HEADS.WITH_BNNECK", False, "INPUT.SIZE_TEST", "[64,32]",
)  # fmt: skip


def save_hub_folder(folder: Path, *overrides: Any) -> dict[str, Any]:
    """Write the folder of a model with random weights; return its reid_config.json."""
    torch.manual_seed(0)
    cfg = tiny_cfg(folder / "run", *CLASSES, *MEAN_OF_TIMM, *overrides)
    model = remove_training_parts(build_untrained(cfg)).eval()
    for module in model.heads.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # a neck that has seen images
            module.running_mean.normal_()
    architecture = hub.name_architecture(model, cfg)
    path = folder / "weights.safetensors"
    write_safetensors(path, model, timm_names=architecture.startswith("timm:"))
    (folder / "config.yaml").write_text(cfg.dump())
    hub.write_descriptions(folder, model, cfg, "tiny", architecture, {"data_sets": {}})
    return json.loads((folder / "reid_config.json").read_text())


def two_runs(folder: Path) -> Path:
    """Save two FED models that differ only in their weights, as ``run`` and ``other``."""
    for seed, name in enumerate(("run", "other")):
        save_run(MODELS["FED"](folder / name), seed=seed)
    return folder


def draw_crops(folder: Path, count: int = 6) -> list[Path]:
    """Write lossless images of many sizes."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        size = 40 + 7 * number, 20 + 3 * number
        coarse = rng.integers(0, 256, (5, 3, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size[::-1]).save(path)
    return paths
