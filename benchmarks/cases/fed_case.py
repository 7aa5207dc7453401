"""The FED model and the batch of the figures.

Shapes: B pairs, C channels, H, W image height and width.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from fastreid.config import CfgNode
from fastreid.modeling.meta_arch import build_model
from torch import nn

from fed_plugin import add_fed_config
from occluded_reid.config import load_config


@dataclasses.dataclass(frozen=True)
class FEDCase:
    """Sizes of a training step; the defaults are the paper's on Occluded-Duke.

    Attributes:
        pairs: B, half of the images in a step.
        instances: Images per identity.
        identities: Of the classifiers and banks.
        channels: C.
        blocks: Of the transformer.
        heads: Of its attention.
        image: (H, W).
        drop_path: Rate of stochastic depth; 0 makes a step deterministic.
    """

    pairs: int = 64
    instances: int = 4
    identities: int = 702
    channels: int = 768
    blocks: int = 12
    heads: int = 12
    image: tuple[int, int] = (256, 128)
    drop_path: float = 0.1

    def smaller(self, **changes: Any) -> FEDCase:
        """Return a copy with other sizes."""
        return dataclasses.replace(self, **changes)


THIN = FEDCase(channels=16, heads=2, image=(64, 32))
"""As many operations as the paper's, all small."""


def build_fed_cfg(case: FEDCase, device: str = "cpu") -> CfgNode:
    """Return the configuration of a FED model."""
    words = {
        "MODEL.META_ARCHITECTURE": "FED",
        "MODEL.DEVICE": device,
        "MODEL.BACKBONE.NAME": "build_token_vit_backbone",
        "MODEL.BACKBONE.DEPTH": "custom",
        "MODEL.BACKBONE.FEAT_DIM": case.channels,
        "MODEL.BACKBONE.NUM_BLOCKS": case.blocks,
        "MODEL.BACKBONE.NUM_HEADS": case.heads,
        "MODEL.BACKBONE.DROP_PATH_RATIO": case.drop_path,
        "MODEL.BACKBONE.PRETRAIN": False,
        "MODEL.HEADS.NUM_CLASSES": case.identities,
        "INPUT.SIZE_TRAIN": list(case.image),
        "INPUT.SIZE_TEST": list(case.image),
    }
    options = [str(word) for pair in words.items() for word in pair]
    return load_config("", options, add_keys=[add_fed_config])


def build_fed(case: FEDCase, device: str = "cpu") -> Any:
    """Return a model in training mode whose banks hold random centers."""
    torch.manual_seed(0)
    model: Any = build_model(build_fed_cfg(case, device)).to(device)
    for memory in (model.erased_memory, model.diffused_memory):
        memory.centres = torch.randn_like(memory.centres)
    return model.train()


def build_batch(case: FEDCase, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Return pairs; random pixels cover the lower half of the second view."""
    rng = torch.Generator().manual_seed(1)
    images = 255 * torch.rand(case.pairs, 3, *case.image, generator=rng)
    occluded = images.clone()
    occluded[:, :, case.image[0] // 2 :] = 255 * torch.rand(
        case.pairs, 3, case.image[0] // 2, case.image[1], generator=rng
    )
    visibility = torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(case.pairs, 1)
    batch = {
        "images": images,
        "occluded_images": occluded,
        "part_visibility": visibility,
        "targets": torch.arange(case.pairs) // case.instances % case.identities,
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def equal_views(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the batch with equal views and one image per identity."""
    distinct = torch.arange(len(batch["targets"]), device=batch["targets"].device)
    return {**batch, "occluded_images": batch["images"], "targets": distinct}


class GivenTokens(nn.Module):
    """Replace the backbone: return given tokens in turn, whatever the images.

    Args:
        tokens: (2 B, 1 + T, C); a parameter, so that its gradient is computed like a backbone's.
        grid: Rows and columns of the patches.
    """

    def __init__(self, tokens: torch.Tensor, grid: tuple[int, int]):
        super().__init__()
        self.tokens = nn.Parameter(tokens)
        self.grid = grid
        self._next = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the next (len(images), 1 + T, C)."""
        first, self._next = self._next, (self._next + len(images)) % len(self.tokens)
        return self.tokens[first : first + len(images)]
