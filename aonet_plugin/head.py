"""From a feature map to landmark features and visibility: all that inference needs.

Shapes: B images in the batch, P landmarks, C channels, H, W feature-map height and width, S stages:
the features before the self-attention block and, if there is one, those after it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from aonet_plugin.landmarks import (
    landmark_responses,
    normalized_maps,
    pool_landmarks,
    referenced_maps,
    visibility_scores,
)
from aonet_plugin.memory import LandmarkMemory
from occluded_reid.modeling.layers import build_neck, to_feature_map

STAGES = ("before", "after")


class Landmarks(NamedTuple):
    """Output of :class:`AONetHead`, float32 or wider.

    Attributes:
        features: F (B, C, H, W), the backbone's feature map.
        responses: (B, P, H, W), logits ``i_k . F(w, h)``.
        maps: (B, P, H, W), the maps that pooled F: of Eq. 3 (OAFea) or Eq. 2 (SLFea).
        visibility: (B, P) in [0, 1], the weight of each landmark.
        pooled: (S, B, P, C), the landmark features of each stage.
        normed: (S, B, P, C), the same after the neck.
    """

    features: torch.Tensor
    responses: torch.Tensor
    maps: torch.Tensor
    visibility: torch.Tensor
    pooled: torch.Tensor
    normed: torch.Tensor


def init_patterns(num_landmarks: int, dim: int, kind: str, scale: float) -> torch.Tensor:
    """Initialize the landmark patterns I (P, C), times ``scale``.

    ``kind`` is ``uniform``, as PyTorch initializes a 1x1 convolution, or ``orthogonal``, with
    orthonormal rows.
    """
    patterns = torch.empty(num_landmarks, dim)
    if kind == "orthogonal":
        return nn.init.orthogonal_(patterns, gain=scale)
    return nn.init.uniform_(patterns, -scale / math.sqrt(dim), scale / math.sqrt(dim))


class AONetHead(nn.Module):
    """Landmark activation, OAScore, OAFea or SLFea, SAtt, neck (Fig. 2).

    Args:
        patterns: initial I (P, C).
        memory: M, or None if neither features nor visibility refer to it.
        attention: SAtt, or None.
        grid: rows and columns of the backbone's patches; None for feature maps.
        occlusion_aware: OAFea, from the referenced maps (Eq. 3); else SLFea, from those of Eq. 2.
        weighting: ``awareness``, ``maximum`` or ``none``: see ``MODEL.AONET.VISIBILITY``.
        neck: have the batch normalization.
        detach_average: no gradient through the average responses of Eq. 3.
        temperature: of phi.
    """

    def __init__(
        self, *, patterns: torch.Tensor, memory: LandmarkMemory | None, attention: nn.Module | None,
        grid: tuple[int, int] | None, occlusion_aware: bool, weighting: str, neck: bool,
        detach_average: bool = False, temperature: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        self.patterns = nn.Parameter(patterns)
        self.memory = memory
        self.attention = attention
        self.grid = grid
        self.occlusion_aware = occlusion_aware
        self.weighting = weighting
        self.detach_average = detach_average
        self.temperature = temperature
        self.neck = build_neck(patterns.shape[1], neck)

    def forward(self, features: torch.Tensor) -> Landmarks:
        """Find the landmarks in backbone ``features``: (B, C, H, W) or (B, 1 + H * W, C)."""
        features = to_feature_map(features, self.grid)
        patterns = self.scaled_patterns()
        responses = landmark_responses(features, patterns)
        maps = normalized_maps(responses)
        all_visible = torch.ones_like(responses[..., 0, 0])
        awareness = all_visible
        if self.memory is not None:
            if self.detach_average:
                patterns = patterns.detach()
            average = self.memory.average_responses(patterns)
            awareness = visibility_scores(responses, average)  # OAScore
        visibility = {
            "awareness": awareness, "maximum": maps.amax(dim=(2, 3)), "none": all_visible
        }[self.weighting]  # fmt: skip
        if self.occlusion_aware:
            maps = referenced_maps(maps, awareness)
        before = pool_landmarks(features, maps)  # OAFea or SLFea
        stages = [before] if self.attention is None else [before, self.attention(before)]  # SAtt
        pooled = torch.stack([stage.to(before.dtype) for stage in stages])
        # one pass over both stages: shared batch statistics
        normed = self.neck(pooled.flatten(0, 2)).view_as(pooled)
        return Landmarks(features, responses, maps, visibility, pooled, normed)

    def scaled_patterns(self) -> torch.Tensor:
        """Return I / temperature (P, C), whose inner products with features are the logits."""
        return self.patterns / self.temperature
