"""FED in a small space: a token backbone of two layers, models and batches for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.modeling.meta_arch import build_model
from runs import TINY
from torch import nn

from fed_plugin import add_fed_config
from occluded_reid.config import load_config

IDENTITIES, PARTS, DIM = 8, 4, 16
RUN = (
    "MODEL.META_ARCHITECTURE", "FED", "MODEL.BACKBONE.NAME", "build_tiny_token_backbone",
    "MODEL.FED.NUM_HEADS", 4, "MODEL.FED.NUM_NEIGHBORS", 3, "SOLVER.OPT", "SGD",
    "INPUT.NPO.ENABLED", True, "INPUT.NPO.MODE", "pair", "INPUT.REA.ENABLED", False,
)  # fmt: skip


class TinyTokens(nn.Module):
    """Patches of 8 x 8, a class token that has seen them all, chance by dropout."""

    def __init__(self, size: tuple[int, int], dim: int = DIM):
        super().__init__()
        self.grid = (size[0] // 8, size[1] // 8)
        self.feature_dim = dim
        self.patches = nn.Conv2d(3, dim, 8, stride=8)
        self.mix = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(0.1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.mix(tokens).relu().mean(dim=1, keepdim=True), tokens], dim=1)
        return self.norm(self.dropout(tokens))


@BACKBONE_REGISTRY.register()
def build_tiny_token_backbone(cfg: CfgNode) -> nn.Module:
    return TinyTokens(tuple(cfg.INPUT.SIZE_TRAIN))


@BACKBONE_REGISTRY.register()
def build_tiny_map_backbone(cfg: CfgNode) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, DIM, 8, stride=8), nn.BatchNorm2d(DIM))


def fed_cfg(*overrides: Any) -> CfgNode:
    words = {
        "MODEL.META_ARCHITECTURE": "FED",
        "MODEL.DEVICE": "cpu",
        "MODEL.BACKBONE.NAME": "build_tiny_token_backbone",
        "MODEL.BACKBONE.FEAT_DIM": DIM,
        "MODEL.HEADS.NUM_CLASSES": IDENTITIES,
        "MODEL.FED.NUM_HEADS": 4,
        "MODEL.FED.NUM_NEIGHBORS": 3,
        "INPUT.SIZE_TRAIN": "[32, 16]",
        "INPUT.SIZE_TEST": "[32, 16]",
    }
    words |= dict(zip(overrides[::2], overrides[1::2], strict=True))
    options = [str(word) for pair in words.items() for word in pair]
    return load_config("", options, add_keys=[add_fed_config])


def fed_run_cfg(folder: Path, *overrides: Any) -> CfgNode:
    """As ``runs.tiny_cfg``: FED's training of a second; its run is kept in ``folder``."""
    file = folder.parent / f"{folder.name}.yml"
    file.write_text(TINY)
    words = ["OUTPUT_DIR", folder, "MODEL.DEVICE", "cpu", *RUN, *overrides]
    return load_config(str(file), [str(word) for word in words], add_keys=[add_fed_config])


def fed_model(*overrides: Any, filled: bool = True) -> Any:
    """A model in training mode whose banks hold random centres."""
    torch.manual_seed(0)
    model = build_model(fed_cfg(*overrides))
    for memory in (model.erased_memory, model.diffused_memory):
        if filled and memory is not None:
            memory.initialize(
                torch.randn(IDENTITIES, memory.centres.shape[1]), torch.arange(IDENTITIES)
            )
    return model.train()


def fed_batch(size: int = 6, *, pairs: bool = True, seed: int = 1) -> dict[str, Any]:
    chance = torch.Generator().manual_seed(seed)
    images = torch.rand(size, 3, 32, 16, generator=chance) * 255
    batch: dict[str, Any] = {
        "images": images,
        "targets": torch.arange(size) // 2 % IDENTITIES,
    }
    if pairs:
        batch["occluded_images"] = torch.rand(size, 3, 32, 16, generator=chance) * 255
        batch["part_visibility"] = torch.randint(0, 2, (size, PARTS), generator=chance).float()
    return batch


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()
