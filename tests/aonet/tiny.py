"""Small configurations, models and batches of AONet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fastreid.config import CfgNode
from fastreid.modeling.meta_arch import build_model
from tiny_runs import DIM, cfg_of, run_cfg  # registers two backbones: tokens and maps of 4 x 2

from aonet_plugin import add_aonet_config

IDENTITIES, LANDMARKS = 8, 3
SMALL = (
    "MODEL.META_ARCHITECTURE", "AONet", "MODEL.AONET.NUM_LANDMARKS", LANDMARKS,
    "TEST.METRIC", "dot",
)  # fmt: skip


def aonet_cfg(*overrides: Any) -> CfgNode:
    words = [
        "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.NAME", "build_tiny_map_backbone",
        "MODEL.BACKBONE.FEAT_DIM", DIM, "MODEL.HEADS.NUM_CLASSES", IDENTITIES,
        "INPUT.SIZE_TRAIN", "[32, 16]", "INPUT.SIZE_TEST", "[32, 16]", *SMALL, *overrides,
    ]  # fmt: skip
    return cfg_of(words, add_aonet_config)


def aonet_run_cfg(folder: Path, *overrides: Any) -> CfgNode:
    return run_cfg(folder, [*SMALL, *overrides], add_aonet_config)


def aonet_model(*overrides: Any, remembered: bool = True) -> Any:
    """Build a model in training mode with a random memory and an open gate."""
    torch.manual_seed(0)
    model = build_model(aonet_cfg(*overrides))
    if remembered and model.heads.memory is not None:
        model.heads.memory.features.normal_()
    if hasattr(model.heads.attention, "gate"):
        torch.nn.init.constant_(model.heads.attention.gate, 0.7)
    return model.train()


def aonet_batch(size: int = 6, *, seed: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(size, 3, 32, 16, generator=generator) * 255
    return {"images": images, "targets": torch.arange(size) // 2 % IDENTITIES}
