"""The AONet model and the batch of the figures."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from aonet_plugin import add_aonet_config
from occluded_reid.config import load_config
from occluded_reid.modeling.build import build_model


@dataclasses.dataclass(frozen=True)
class AONetCase:
    """Sizes of a training step; the defaults are the paper's on Occluded-Duke.

    Attributes:
        images: In the batch.
        identities: Of the classifier.
        depth: Of the ResNet, in fast-reid's notation.
        channels: Of its last stage.
        image: Height and width.
    """

    images: int = 64
    identities: int = 702
    depth: str = "50x"
    channels: int = 2048
    image: tuple[int, int] = (256, 128)


def build_aonet(case: AONetCase, device: str = "cpu", *, channels_last: bool = False) -> Any:
    """Return a model in training mode; AONet's configurations use channels last."""
    words = {
        "MODEL.META_ARCHITECTURE": "AONet",
        "MODEL.DEVICE": device,
        "MODEL.CHANNELS_LAST": channels_last,
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.BACKBONE.DEPTH": case.depth,
        "MODEL.BACKBONE.FEAT_DIM": case.channels,
        "MODEL.BACKBONE.PRETRAIN": False,
        "MODEL.HEADS.NUM_CLASSES": case.identities,
        "INPUT.SIZE_TRAIN": list(case.image),
        "INPUT.SIZE_TEST": list(case.image),
        "TEST.METRIC": "dot",
    }
    options = [str(word) for pair in words.items() for word in pair]
    torch.manual_seed(0)
    cfg = load_config("", options, add_keys=[add_aonet_config])
    return build_model(cfg).to(device).train()


def build_batch(case: AONetCase, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Return random images, four per identity."""
    rng = torch.Generator().manual_seed(1)
    images = 255 * torch.rand(case.images, 3, *case.image, generator=rng)
    targets = torch.arange(case.images) // 4 % case.identities
    return {"images": images.to(device), "targets": targets.to(device)}
