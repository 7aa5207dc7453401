"""The FED model and the batch that the figures measure.

Shapes: B pairs in the batch, P parts, C channels, D = P * C, I identities, H, W image height and
width.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from fastreid.modeling.meta_arch import build_model
from torch import nn

from fed_plugin import add_fed_config
from occluded_reid.config import load_config


@dataclasses.dataclass(frozen=True)
class FEDCase:
    """Sizes of a training step. The defaults are those of the paper on Occluded-Duke.

    Attributes:
        pairs: B, half of the images in a step.
        instances: images of an identity in the batch.
        identities: I.
        channels: C, of the transformer.
        blocks: of the transformer.
        heads: of its attention.
        image: (H, W).
        drop_path: the rate of stochastic depth, 0.1 in the paper's recipe. 0 leaves no chance.
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
        """Return the case with other sizes."""
        return dataclasses.replace(self, **changes)


THIN = FEDCase(channels=16, heads=2, image=(64, 32))
"""As many operations as the paper's, all of them small."""


def build_fed(case: FEDCase, device: str = "cpu") -> Any:
    """Return a model in training mode whose banks hold random centres."""
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
    torch.manual_seed(0)
    model: Any = build_model(load_config("", options, add_keys=[add_fed_config])).to(device)
    for memory in (model.erased_memory, model.diffused_memory):
        memory.centres = torch.randn_like(memory.centres)
    return model.train()


def build_batch(case: FEDCase, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Return pairs; in the second view random pixels stand over the lower half."""
    chance = torch.Generator().manual_seed(1)
    images = 255 * torch.rand(case.pairs, 3, *case.image, generator=chance)
    occluded = images.clone()
    occluded[:, :, case.image[0] // 2 :] = 255 * torch.rand(
        case.pairs, 3, case.image[0] // 2, case.image[1], generator=chance
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
    """Return the batch with both views alike and one image of each identity."""
    alone = torch.arange(len(batch["targets"]), device=batch["targets"].device)
    return {**batch, "occluded_images": batch["images"], "targets": alone}


class GivenTokens(nn.Module):
    """Stands in for the backbone: hands out given tokens in turn, whatever the images.

    Args:
        tokens: (2 B, 1 + T, C), a leaf, so that its gradient is computed as a backbone's would.
        grid: rows and columns of the patches.
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
