"""Models, batches and training steps of the figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from fastreid.config import CfgNode
from fastreid.utils.events import EventStorage
from torch import nn

from aonet_plugin import add_aonet_config
from fed_plugin import add_fed_config
from occluded_reid.config import load_config
from occluded_reid.engine.optimizer import build_optimizer
from occluded_reid.engine.train_step import TrainingStep, wrap_model
from occluded_reid.modeling.build import build_model

Batch = dict[str, torch.Tensor]
# FED's optimizer (Sec. 4.2)
SGD = (
    "MODEL.DEVICE", "cpu", "SOLVER.OPT", "SGD", "SOLVER.BASE_LR", "0.008",
    "SOLVER.WEIGHT_DECAY", "0.0001", "SOLVER.WEIGHT_DECAY_BIAS", "0.0001",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class FEDCase:
    """Sizes of a FED training step; the defaults are the paper's on Occluded-Duke."""

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
        options = (
            "MODEL.META_ARCHITECTURE", "FED", "MODEL.BACKBONE.NAME", "build_token_vit_backbone",
            "MODEL.BACKBONE.DEPTH", "custom", "MODEL.BACKBONE.NUM_BLOCKS", self.blocks,
            "MODEL.BACKBONE.NUM_HEADS", self.heads,
            "MODEL.BACKBONE.DROP_PATH_RATIO", self.drop_path,
        )  # fmt: skip
        return _load_config(self, device, options, add_fed_config)

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


@dataclasses.dataclass(frozen=True)
class AONetCase:
    """Sizes of an AONet training step; the defaults are the paper's on Occluded-Duke."""

    images: int = 64  # in the batch
    identities: int = 702
    depth: str = "50x"  # of the ResNet, in fast-reid's notation
    channels: int = 2048  # of its last stage
    image: tuple[int, int] = (256, 128)  # height and width

    def build_model(self, device: str = "cpu", *, channels_last: bool = False) -> Any:
        """Return a model in training mode; AONet's configurations use channels last."""
        options = (
            "MODEL.META_ARCHITECTURE", "AONet", "MODEL.CHANNELS_LAST", channels_last,
            "MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.DEPTH", self.depth,
            "TEST.METRIC", "dot",
        )  # fmt: skip
        torch.manual_seed(0)
        cfg = _load_config(self, device, options, add_aonet_config)
        return build_model(cfg).to(device).train()

    def build_batch(self, device: str = "cpu") -> Batch:
        """Return random images, four per identity."""
        rng = torch.Generator().manual_seed(1)
        images = 255 * torch.rand(self.images, 3, *self.image, generator=rng)
        targets = torch.arange(self.images) // 4 % self.identities
        return {"images": images.to(device), "targets": targets.to(device)}


FED, AONET = FEDCase(), AONetCase()
THIN = FED.smaller(channels=16, heads=2, image=(64, 32))
"""As many operations as the paper's, all small."""


def _load_config(
    case: FEDCase | AONetCase, device: str, options: tuple[Any, ...], add_keys: Any
) -> CfgNode:
    words = (
        *options, "MODEL.DEVICE", device, "MODEL.BACKBONE.PRETRAIN", False,
        "MODEL.BACKBONE.FEAT_DIM", case.channels, "MODEL.HEADS.NUM_CLASSES", case.identities,
        "INPUT.SIZE_TRAIN", list(case.image), "INPUT.SIZE_TEST", list(case.image),
    )  # fmt: skip
    return load_config("", [str(word) for word in words], add_keys=[add_keys])


def our_step(model: Any, batch: Batch, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Run forward and backward pass and memory update; return the loss terms.

    ``dtype`` is that of autocast; None for float32.
    """
    with torch.autocast(batch["images"].device.type, dtype, enabled=dtype is not None):
        terms = model(batch)
    sum(terms.values()).backward()
    return terms


def build_step(cfg: CfgNode, model: nn.Module, batches: Iterable[dict[str, Any]]) -> TrainingStep:
    """Return the trainer's step over ``batches``, in one endless epoch."""
    optimizer = build_optimizer(cfg, model)
    return TrainingStep(cfg, wrap_model(cfg, model), batches, optimizer, iters_per_epoch=10**9)


def run_steps(step: TrainingStep, number: int) -> dict[str, list[float]]:
    """Run iterations; return the loss terms and ``data_time`` (waiting for a batch) of each."""
    with EventStorage(step.iter) as storage:
        for _ in range(number):
            storage.iter = step.iter
            step.run_step()
            step.iter += 1
        step.read_losses()
        histories = storage.histories()
    return {name: [value for value, _ in each.values()] for name, each in histories.items()}
