"""Small configurations, models and batches of FED."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fastreid.config import CfgNode
from fastreid.modeling.meta_arch import build_model
from tiny_runs import DIM, cfg_of, run_cfg
from tiny_runs import to_numpy as to_numpy  # re-exported to this folder's tests

from fed_plugin import add_fed_config
from fed_plugin.diffusion import CentreAttention, FeatureDiffusion, FeedForward
from occluded_reid.modeling.layers import build_neck

IDENTITIES, PARTS = 8, 4
RUN = (
    "MODEL.META_ARCHITECTURE", "FED", "MODEL.BACKBONE.NAME", "build_tiny_token_backbone",
    "MODEL.FED.NUM_HEADS", 4, "MODEL.FED.NUM_NEIGHBORS", 3, "SOLVER.OPT", "SGD",
    "INPUT.NPO.ENABLED", True, "INPUT.NPO.MODE", "pair", "INPUT.REA.ENABLED", False,
)  # fmt: skip


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
    return cfg_of([word for pair in words.items() for word in pair], add_fed_config)


def fed_run_cfg(folder: Path, *overrides: Any) -> CfgNode:
    return run_cfg(folder, [*RUN, *overrides], add_fed_config)


def build_fdm(
    dim: int,
    num_parts: int,
    *,
    num_neighbors: int = 3,
    num_heads: int = 2,
    ffn_ratio: int = 4,
    normalize_centres: bool = True,
    neck: bool = False,
) -> FeatureDiffusion:
    """Build a small FDM of the paper."""
    return FeatureDiffusion(
        num_parts=num_parts,
        num_neighbors=num_neighbors,
        normalize_centres=normalize_centres,
        attention=CentreAttention(dim=num_parts * dim, num_heads=num_heads),
        first_ffn=FeedForward(dim=dim, ratio=ffn_ratio),
        second_ffn=FeedForward(dim=dim, ratio=ffn_ratio),
        neck=build_neck(num_parts * dim, neck),
    )


def fed_model(*overrides: Any, filled: bool = True) -> Any:
    """Build a model in training mode with random centres in its banks."""
    torch.manual_seed(0)
    model = build_model(fed_cfg(*overrides))
    for memory in (model.erased_memory, model.diffused_memory):
        if filled and memory is not None:
            memory.initialize(
                torch.randn(IDENTITIES, memory.centres.shape[1]), torch.arange(IDENTITIES)
            )
    return model.train()


def disable_dropout(model: Any) -> Any:
    model.backbone.dropout.p = 0.0
    return model


def fed_batch(size: int = 6, *, pairs: bool = True, seed: int = 1) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(size, 3, 32, 16, generator=generator) * 255
    batch: dict[str, Any] = {
        "images": images,
        "targets": torch.arange(size) // 2 % IDENTITIES,
    }
    if pairs:
        batch["occluded_images"] = torch.rand(size, 3, 32, 16, generator=generator) * 255
        batch["part_visibility"] = torch.randint(0, 2, (size, PARTS), generator=generator).float()
    return batch
