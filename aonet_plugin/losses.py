"""AONet's losses (Sec. 3.5): functions of tensors, in float32 or wider also under autocast.

Shapes: B images in the batch, P landmarks (K in the paper), C channels, I identities, H, W
feature-map height and width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fastreid.modeling.losses.triplet_loss import triplet_loss

from occluded_reid.modeling.layers import run_in_float32

# Least value of 1 - cosine in Eq. 6: parallel features count 13.8, not infinity.
LEAST_ANGLE = 1e-6


@run_in_float32
def visible_identity_loss(
    logits: torch.Tensor,
    identities: torch.Tensor,
    visibility: torch.Tensor,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Return one stage's cross entropy weighted by visibility (one sum of Eq. 5).

    ``-(1/K) sum_k beta_k log p_k``, mean over images. It is not divided by the sum of the weights:
    an occluded image counts less.

    Args:
        logits: (B, P, I).
        identities: (B,), in 0..I-1.
        visibility: beta (B, P); by its gradient the loss falls where nothing is visible.
        label_smoothing: share of the target that is spread over all identities.
    """
    entropies = F.cross_entropy(
        logits.flatten(0, 1),
        identities.repeat_interleave(logits.shape[1]),
        reduction="none",
        label_smoothing=label_smoothing,
    ).view_as(visibility)
    return (visibility * entropies).mean()


@run_in_float32
def orthogonal_loss(features: torch.Tensor) -> torch.Tensor:
    """Return the loss of landmark features that point the same way, mean over images (Eq. 6).

    ``-(1/K^2) sum_{i<j} log(1 - max(0, cos(f_i, f_j)))``, the argument not below ``LEAST_ANGLE``.
    One landmark alone gives 0.

    Args:
        features: f (B, P, C) before the self-attention block.
    """
    unit = F.normalize(features, dim=2)
    cosines = unit @ unit.transpose(1, 2)  # (B, P, P)
    pairs = cosines.clamp(0, 1 - LEAST_ANGLE).triu(diagonal=1)
    return -torch.log1p(-pairs).mean()


def overlap_loss(maps: torch.Tensor) -> torch.Tensor:
    """Return how much the landmarks' maps lie on one another, in [0, 1 - 1/K], mean over images.

    The position regularisation of Comparator Networks, ``1 - (1/K) sum_wh max_k R_k``: the paper's
    Base_RegL. 0 where no two maps meet, 1 - 1/K where all are the same.

    Args:
        maps: (B, P, H, W), each summing to 1 (Eq. 2).
    """
    return 1 - maps.amax(dim=1).sum(dim=(1, 2)).mean() / maps.shape[1]


@run_in_float32
def landmark_triplet_loss(
    features: torch.Tensor, identities: torch.Tensor, margin: float
) -> torch.Tensor:
    """Return fast-reid's batch-hard triplet loss on landmark features. Not in the paper.

    Args:
        features: (B, P, C), compared by the Euclidean distance of (B, P * C).
        identities: (B,).
        margin: of the distances.
    """
    return triplet_loss(features.flatten(1), identities, margin, False, True)
