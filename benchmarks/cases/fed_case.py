"""The FED model and the batch of the figures."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from fastreid.config import CfgNode
from fastreid.modeling.meta_arch import build_model

from cases.training import Batch, load_case_config
from fed_plugin import add_fed_config


@dataclasses.dataclass(frozen=True)
class FEDCase:
    """Sizes of a training step; the defaults are the paper's on Occluded-Duke."""

    pairs: int = 64  # half of the images in a step
    instances: int = 4  # images per identity
    identities: int = 702  # of the classifiers and banks
    channels: int = 768
    blocks: int = 12  # of the transformer
    heads: int = 12  # of its attention
    image: tuple[int, int] = (256, 128)  # height and width
    drop_path: float = 0.1  # rate of stochastic depth; 0 makes a step deterministic

    def smaller(self, **changes: Any) -> FEDCase:
        """Return a copy with other sizes."""
        return dataclasses.replace(self, **changes)

    def build_cfg(self, device: str = "cpu") -> CfgNode:
        """Return the model's configuration."""
        keys = {
            "MODEL.META_ARCHITECTURE": "FED",
            "MODEL.DEVICE": device,
            "MODEL.BACKBONE.NAME": "build_token_vit_backbone",
            "MODEL.BACKBONE.DEPTH": "custom",
            "MODEL.BACKBONE.FEAT_DIM": self.channels,
            "MODEL.BACKBONE.NUM_BLOCKS": self.blocks,
            "MODEL.BACKBONE.NUM_HEADS": self.heads,
            "MODEL.BACKBONE.DROP_PATH_RATIO": self.drop_path,
            "MODEL.HEADS.NUM_CLASSES": self.identities,
            "INPUT.SIZE_TRAIN": list(self.image),
            "INPUT.SIZE_TEST": list(self.image),
        }
        return load_case_config(keys, add_fed_config)

    def build_model(self, device: str = "cpu") -> Any:
        """Return a model in training mode whose banks hold random centers."""
        torch.manual_seed(0)
        model: Any = build_model(self.build_cfg(device)).to(device)
        for memory in (model.erased_memory, model.diffused_memory):
            memory.centres = torch.randn_like(memory.centres)
        return model.train()

    def build_batch(self, device: str = "cpu") -> Batch:
        """Return pairs; random pixels cover the lower half of the second view."""
        rng = torch.Generator().manual_seed(1)
        height, width = self.image
        images = 255 * torch.rand(self.pairs, 3, height, width, generator=rng)
        occluded = images.clone()
        occluded[:, :, height // 2 :] = 255 * torch.rand(
            self.pairs, 3, height // 2, width, generator=rng
        )
        batch = {
            "images": images,
            "occluded_images": occluded,
            "part_visibility": torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(self.pairs, 1),
            "targets": torch.arange(self.pairs) // self.instances % self.identities,
        }
        return {name: tensor.to(device) for name, tensor in batch.items()}


THIN = FEDCase(channels=16, heads=2, image=(64, 32))
"""As many operations as the paper's, all small."""
