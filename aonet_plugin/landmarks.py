"""Where the landmarks are, and how visible each of them is (Sec. 3.2 to 3.4).

Functions of tensors, in float32 or wider also under autocast: the paper's ``phi`` is an exponential
of an inner product over thousands of channels, which overflows where it is computed as printed.

Shapes: B images in the batch, P landmarks (K in the paper), C channels, H, W feature-map height and
width. The paper's occlusion awareness score is 1 where a landmark is seen: visibility here.
"""

from __future__ import annotations

import torch

from occluded_reid.modeling.layers import run_in_float32


@run_in_float32
def landmark_responses(features: torch.Tensor, patterns: torch.Tensor) -> torch.Tensor:
    """Return the logits ``i_k . F(w, h)`` (B, P, H, W); ``phi`` is their exponential (Sec. 3.2).

    Args:
        features: F (B, C, H, W).
        patterns: I (P, C), the weights of a 1x1 convolution without bias.
    """
    return torch.einsum("bchw,pc->bphw", features, patterns)


def normalized_maps(responses: torch.Tensor) -> torch.Tensor:
    """Return the responses normalised over all pixels: each map (H, W) sums to 1 (Eq. 2).

    Args:
        responses: logits (B, P, H, W).
    """
    return responses.flatten(2).softmax(dim=2).view_as(responses)


def visibility_scores(responses: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
    """Return the occlusion awareness scores beta (B, P) in [0, 1], 1 = visible (Eq. 3, 4).

    Eq. 4 sums, over all pixels, a softmax over the pixels and the average response. That is
    ``S / (S + exp(a))`` with the pixels' sum ``S``: the sigmoid of ``log S - a``.

    Args:
        responses: logits (B, P, H, W).
        average: a (P,), logits ``i_k . m_k``.
    """
    return (responses.flatten(2).logsumexp(dim=2) - average).sigmoid()


def referenced_maps(maps: torch.Tensor, visibility: torch.Tensor) -> torch.Tensor:
    """Return the referenced response maps (B, P, H, W); each sums to its visibility (Eq. 3).

    The average response stands in the denominator of every pixel alike. So a referenced map is the
    normalised map times the landmark's visibility, and points to the same place.

    Args:
        maps: the normalised maps of Eq. 2 (B, P, H, W).
        visibility: beta (B, P).
    """
    return maps * visibility[..., None, None]


@run_in_float32
def pool_landmarks(features: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Return the landmark features ``f_k = F R_k`` (B, P, C) (Sec. 3.2, 3.4).

    Args:
        features: F (B, C, H, W).
        maps: R (B, P, H, W).
    """
    return torch.einsum("bchw,bphw->bpc", features, maps)
