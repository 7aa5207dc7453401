"""A method in one file: stripes of the feature map, weighed by how visible they are.

Shapes: B images in the batch, P stripes, C channels, H, W feature-map height and width,
I identities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import occluded_reid  # noqa: F401  (first: makes fast-reid importable)

# isort: split
from fastreid.config import CfgNode, configurable
from fastreid.modeling.backbones import build_backbone
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY

from occluded_reid.modeling.layers import build_neck
from occluded_reid.modeling.outputs import Embedding
from occluded_reid.utils.errors import UserError


def add_stripes_config(cfg: CfgNode) -> None:
    """Add ``MODEL.STRIPES.*`` to a configuration; pyproject.toml names this function."""
    cfg.MODEL.STRIPES = CfgNode()
    # Horizontal stripes per image, P. INPUT.NPO.NUM_STRIPES must be the same.
    cfg.MODEL.STRIPES.NUM_PARTS = 4
    # Weight of the error of the visibility scores.
    cfg.MODEL.STRIPES.VISIBILITY_WEIGHT = 1.0


class StripeHead(nn.Module):
    """From a feature map to one vector per image: all that inference needs.

    Args:
        dim: C.
        num_parts: P.
    """

    def __init__(self, dim: int, num_parts: int):
        super().__init__()
        self.num_parts = num_parts
        self.score = nn.Linear(dim, 1)
        self.neck = build_neck(dim, enabled=True)

    def forward(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features (B, C) after the neck, and visibility (B, P).

        Args:
            maps: (B, C, H, W).
        """
        stripes = F.adaptive_avg_pool2d(maps, (self.num_parts, 1)).squeeze(-1).transpose(1, 2)
        visibility = self.score(stripes).squeeze(-1).float().sigmoid()
        weights = visibility / visibility.sum(dim=1, keepdim=True).clamp(min=1e-6)
        return self.neck((weights.unsqueeze(-1) * stripes).sum(dim=1)), visibility


@META_ARCH_REGISTRY.register()
class Stripes(nn.Module):
    """The mean of the stripes, weighed by their visibility.

    Args:
        backbone: gives feature maps (B, C, H, W).
        heads: from there to one vector per image.
        num_identities: I.
        visibility_weight: of the error of the visibility scores.
        pixel_mean: of images in 0-255, by channel.
        pixel_std: likewise.
    """

    # What inference does not need: it is neither exported nor published.
    training_only = ("classifier",)

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        heads: StripeHead,
        dim: int,
        num_identities: int,
        visibility_weight: float,
        pixel_mean: list[float],
        pixel_std: list[float],
    ):
        super().__init__()
        self.backbone = backbone
        self.heads = heads
        self.classifier = nn.Linear(dim, num_identities, bias=False)
        self.visibility_weight = visibility_weight
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read ``MODEL.STRIPES``; the arguments of ``__init__``.

        Raises:
            UserError: a value out of its range.
        """
        stripes, dim = cfg.MODEL.STRIPES, cfg.MODEL.BACKBONE.FEAT_DIM
        parts = stripes.NUM_PARTS
        if parts < 1:
            raise UserError(f"MODEL.STRIPES.NUM_PARTS is {parts}; it must be at least 1")
        return {
            "backbone": build_backbone(cfg),
            "heads": StripeHead(dim, parts),
            "dim": dim,
            "num_identities": cfg.MODEL.HEADS.NUM_CLASSES,
            "visibility_weight": stripes.VISIBILITY_WEIGHT,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor] | Embedding:
        """Return the loss terms in training, an :class:`Embedding` in evaluation.

        Args:
            batch: ``images`` (B, 3, H, W) in 0-255; in training ``targets`` (B,), and with
                ``INPUT.NPO`` ``part_visibility`` (B, P), 1 = visible.
        """
        images = (batch["images"] - self.pixel_mean) / self.pixel_std
        features, visibility = self.heads(self.backbone(images))
        if not self.training:
            return Embedding(features, visibility)
        logits = self.classifier(features).float()
        losses = {"loss_identity": F.cross_entropy(logits, batch["targets"])}
        if "part_visibility" in batch:
            error = F.mse_loss(visibility, batch["part_visibility"].float())
            losses["loss_visibility"] = self.visibility_weight * error
        return losses
