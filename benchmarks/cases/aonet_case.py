"""The AONet model and the batch of the figures."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from aonet_plugin import add_aonet_config
from cases.training import Batch, load_case_config
from occluded_reid.modeling.build import build_model


@dataclasses.dataclass(frozen=True)
class AONetCase:
    """Sizes of a training step; the defaults are the paper's on Occluded-Duke."""

    images: int = 64  # in the batch
    identities: int = 702
    depth: str = "50x"  # of the ResNet, in fast-reid's notation
    channels: int = 2048  # of its last stage
    image: tuple[int, int] = (256, 128)  # height and width

    def build_model(self, device: str = "cpu", *, channels_last: bool = False) -> Any:
        """Return a model in training mode; AONet's configurations use channels last."""
        keys = {
            "MODEL.META_ARCHITECTURE": "AONet",
            "MODEL.DEVICE": device,
            "MODEL.CHANNELS_LAST": channels_last,
            "MODEL.BACKBONE.NAME": "build_resnet_backbone",
            "MODEL.BACKBONE.DEPTH": self.depth,
            "MODEL.BACKBONE.FEAT_DIM": self.channels,
            "MODEL.HEADS.NUM_CLASSES": self.identities,
            "INPUT.SIZE_TRAIN": list(self.image),
            "INPUT.SIZE_TEST": list(self.image),
            "TEST.METRIC": "dot",
        }
        torch.manual_seed(0)
        return build_model(load_case_config(keys, add_aonet_config)).to(device).train()

    def build_batch(self, device: str = "cpu") -> Batch:
        """Return random images, four per identity."""
        rng = torch.Generator().manual_seed(1)
        images = 255 * torch.rand(self.images, 3, *self.image, generator=rng)
        targets = torch.arange(self.images) // 4 % self.identities
        return {"images": images.to(device), "targets": targets.to(device)}
