"""From a feature map to landmark features and visibility: all that inference needs.

Shapes: B images in the batch, P landmarks, C channels, H, W feature-map height and width, S stages:
the features before the self-attention block and, where there is one, those after it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
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
    """What the head finds in a batch; float32 or wider.

    Attributes:
        features: F (B, C, H, W), the backbone's map.
        responses: (B, P, H, W), logits ``i_k . F(w, h)``.
        maps: (B, P, H, W), what F was pooled with: Eq. 3, or Eq. 2 for SL features.
        visibility: (B, P) in [0, 1], what each landmark weighs.
        pooled: (S, B, P, C), the landmark features of each stage.
        normed: (S, B, P, C), the same through the neck.
    """

    features: torch.Tensor
    responses: torch.Tensor
    maps: torch.Tensor
    visibility: torch.Tensor
    pooled: torch.Tensor
    normed: torch.Tensor


def similarity_vectors(features: torch.Tensor, visibility: torch.Tensor) -> torch.Tensor:
    """Return one vector (B, S * P * C) per image whose inner products are Eq. 8.

    ``e = concat_k(beta_k f_k / |f_k|) / sqrt(K)``, so that ``e1 . e2`` is the sum of Eq. 8; over S
    stages, the mean of their sums. The length of ``e`` holds how much of the person is seen: scaled
    to unit length, it ranks otherwise.

    Args:
        features: f (S, B, P, C).
        visibility: beta (B, P).
    """
    stages, _, landmarks, _ = features.shape
    unit = F.normalize(features, dim=3)
    vectors = (visibility[..., None] * unit).transpose(0, 1).flatten(1)
    return vectors / math.sqrt(stages * landmarks)


def first_patterns(num_landmarks: int, dim: int, kind: str, scale: float) -> torch.Tensor:
    """Return the landmark patterns (P, C) that training starts from.

    Args:
        num_landmarks: P.
        dim: C.
        kind: ``uniform``, as PyTorch starts a 1x1 convolution, or ``orthogonal``, rows of length 1
            at right angles.
        scale: both are multiplied by it.
    """
    patterns = torch.empty(num_landmarks, dim)
    if kind == "orthogonal":
        return nn.init.orthogonal_(patterns, gain=scale)
    return nn.init.uniform_(patterns, -scale / math.sqrt(dim), scale / math.sqrt(dim))


class AONetHead(nn.Module):
    """Landmark activation, visibility, landmark features, self-attention, neck (Fig. 2).

    Args:
        patterns: I (P, C) to start from.
        memory: M, or None where neither features nor visibility refer to it.
        attention: the block over the landmarks, or None.
        grid: rows and columns of the backbone's patches; None where it gives feature maps.
        occlusion_aware: features from the referenced maps (Eq. 3), else from those of Eq. 2.
        weighting: ``awareness``, ``maximum`` or ``none``: see ``MODEL.AONET.VISIBILITY``.
        neck: have the batch normalisation.
    """

    def __init__(
        self,
        *,
        patterns: torch.Tensor,
        memory: LandmarkMemory | None,
        attention: nn.Module | None,
        grid: tuple[int, int] | None,
        occlusion_aware: bool,
        weighting: str,
        neck: bool,
    ):
        super().__init__()
        self.patterns = nn.Parameter(patterns)
        self.memory = memory
        self.attention = attention
        self.grid = grid
        self.occlusion_aware = occlusion_aware
        self.weighting = weighting
        self.neck = build_neck(patterns.shape[1], neck)

    def forward(self, features: torch.Tensor) -> Landmarks:
        """Read the backbone's ``features``: (B, C, H, W) or (B, 1 + H * W, C)."""
        features = to_feature_map(features, self.grid)
        responses = landmark_responses(features, self.patterns)
        maps = normalized_maps(responses)
        all_visible = torch.ones_like(responses[..., 0, 0])
        awareness = all_visible
        if self.memory is not None:
            average = self.memory.average_responses(self.patterns)
            awareness = visibility_scores(responses, average)
        visibility = {
            "awareness": awareness, "maximum": maps.amax(dim=(2, 3)), "none": all_visible
        }[self.weighting]  # fmt: skip
        if self.occlusion_aware:
            maps = referenced_maps(maps, awareness)
        before = pool_landmarks(features, maps)
        stages = [before] if self.attention is None else [before, self.attention(before)]
        pooled = torch.stack([stage.to(before.dtype) for stage in stages])
        # one pass over both stages: common statistics
        normed = self.neck(pooled.flatten(0, 2)).view_as(pooled)
        return Landmarks(features, responses, maps, visibility, pooled, normed)
