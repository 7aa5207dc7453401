"""A method in one file: stripes of the feature map, weighted by their visibility.

Shapes: B images in the batch, P stripes, C channels, H, W feature-map height and width,
I identities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import occluded_reid.compat  # noqa: F401  (first: makes fast-reid importable)

# isort: split
from fastreid.config import CfgNode, configurable
from fastreid.modeling.backbones import build_backbone
from fastreid.modeling.meta_arch import META_ARCH_REGISTRY

from occluded_reid.modeling import Embedding, ImageNormalization, build_neck
from occluded_reid.utils.errors import UserError


def add_stripes_config(cfg: CfgNode) -> None:
    """Add ``MODEL.STRIPES.*`` to a configuration; pyproject.toml names this function."""
    cfg.MODEL.STRIPES = CfgNode()
    # Horizontal stripes per image, P. INPUT.NPO.NUM_STRIPES must be equal.
    cfg.MODEL.STRIPES.NUM_PARTS = 4
    # Weight of the visibility loss.
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
    """The mean of the stripes, weighted by their visibility.

    Args:
        normalization: of images in 0-255.
        backbone: returns feature maps (B, C, H, W).
        heads: with the backbone, all that inference needs.
        dim: C.
        num_identities: I.
        visibility_weight: of the visibility loss.
    """

    # The keys below MODEL that it reads, besides those that every model reads.
    reads_keys = ("MODEL.STRIPES.", "MODEL.HEADS.NUM_CLASSES")
    # Modules that inference does not need: they are neither exported nor published.
    training_only = ("classifier",)

    @configurable
    def __init__(
        self,
        *,
        normalization: ImageNormalization,
        backbone: nn.Module,
        heads: StripeHead,
        dim: int,
        num_identities: int,
        visibility_weight: float,
    ):
        super().__init__()
        self.normalization = normalization
        self.backbone = backbone
        self.heads = heads
        self.classifier = nn.Linear(dim, num_identities, bias=False)
        self.visibility_weight = visibility_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the arguments of ``__init__`` from ``MODEL.STRIPES``.

        Raises:
            UserError: a value out of its range.
        """
        stripes, dim = cfg.MODEL.STRIPES, cfg.MODEL.BACKBONE.FEAT_DIM
        parts = stripes.NUM_PARTS
        if parts < 1:
            raise UserError(f"MODEL.STRIPES.NUM_PARTS is {parts}; it must be at least 1")
        return {
            "normalization": ImageNormalization(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD),
            "backbone": build_backbone(cfg),
            "heads": StripeHead(dim, parts),
            "dim": dim,
            "num_identities": cfg.MODEL.HEADS.NUM_CLASSES,
            "visibility_weight": stripes.VISIBILITY_WEIGHT,
        }

    def forward(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor] | Embedding:
        """Return the loss terms in training, an :class:`Embedding` in evaluation.

        Args:
            batch: ``images`` (B, 3, H, W) in 0-255; in training ``targets`` (B,), and with
                ``INPUT.NPO`` ``part_visibility`` (B, P), 1 = visible.
        """
        features, visibility = self.heads(self.backbone(self.normalization(batch["images"])))
        if not self.training:
            return Embedding(features, visibility)
        logits = self.classifier(features).float()
        losses = {"loss_identity": F.cross_entropy(logits, batch["targets"])}
        if "part_visibility" in batch:
            error = F.mse_loss(visibility, batch["part_visibility"].float())
            losses["loss_visibility"] = self.visibility_weight * error
        return losses
