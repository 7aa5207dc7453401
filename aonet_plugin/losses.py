"""AONet's losses (Sec. 3.5): functions of tensors, in float32 or wider under autocast too.

Shapes: B images in the batch, P landmarks (K in the paper), C channels, I identities, H, W
feature-map height and width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from fastreid.modeling.losses.triplet_loss import triplet_loss

from occluded_reid.modeling.layers import run_in_float32

# Lower bound of 1 - cosine in Eq. 6: a pair of parallel features counts 13.8, not infinity.
MIN_COSINE_DISTANCE = 1e-6


@run_in_float32
def visible_identity_loss(
    logits: torch.Tensor, identities: torch.Tensor, visibility: torch.Tensor,
    label_smoothing: float = 0.0,
) -> torch.Tensor:  # fmt: skip
    """Return one stage's cross entropy weighted by visibility (one of the two sums in Eq. 5).

    ``-(1/K) sum_k beta_k log p_k``, mean over images. It is not divided by the sum of the weights,
    so that an occluded image counts less.

    >>> visibility = torch.tensor([[1.0, 0.0]])
    >>> visible_identity_loss(torch.zeros(1, 2, 4), torch.tensor([3]), visibility).item()
    0.6931471824645996

    Args:
        logits: (B, P, I).
        identities: (B,), in 0..I-1.
        visibility: beta (B, P); its gradient lowers the loss by lowering every beta.
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
def orthogonal_loss(
    features: torch.Tensor, reduction: Literal["mean", "sum"] = "mean"
) -> torch.Tensor:
    """Return OLoss, which penalizes parallel landmark features (Eq. 6).

    ``-(1/K^2) sum_{i<j} log(1 - max(0, cos(f_i, f_j)))``, the argument of the logarithm at least
    ``MIN_COSINE_DISTANCE``. It is 0 for one landmark.

    >>> orthogonal_loss(torch.eye(6)[None]).item()
    -0.0

    Args:
        features: f (B, P, C) before the self-attention block.
        reduction: over images.
    """
    unit = F.normalize(features, dim=2)
    cosines = unit @ unit.transpose(1, 2)  # (B, P, P)
    pairs = cosines.clamp(0, 1 - MIN_COSINE_DISTANCE).triu(diagonal=1)
    of_images = -torch.log1p(-pairs).mean(dim=(1, 2))
    return of_images.sum() if reduction == "sum" else of_images.mean()


def overlap_loss(maps: torch.Tensor) -> torch.Tensor:
    """Return the overlap of the landmarks' maps, in [0, 1 - 1/K], mean over images.

    The position regularization of Comparator Networks, ``1 - (1/K) sum_wh max_k R_k``: the paper's
    Base_RegL. 0 for disjoint maps, 1 - 1/K for equal ones.

    >>> overlap_loss(torch.full((1, 4, 2, 2), 0.25)).item()
    0.75

    Args:
        maps: (B, P, H, W), each summing to 1 (Eq. 2).
    """
    return 1 - maps.amax(dim=1).sum(dim=(1, 2)).mean() / maps.shape[1]


@run_in_float32
def landmark_triplet_loss(
    features: torch.Tensor, identities: torch.Tensor, margin: float
) -> torch.Tensor:
    """Return fast-reid's batch-hard triplet loss on landmark features. Not in the paper.

    The landmark features (B, P, C) of an image are concatenated; distances are Euclidean.
    """
    return triplet_loss(features.flatten(1), identities, margin, False, True)
