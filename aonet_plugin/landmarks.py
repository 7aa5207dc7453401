"""Where the landmarks are, and how visible each of them is (Sec. 3.2 to 3.4).

Functions of tensors, in float32 or wider under autocast too. The paper's ``phi`` is the exponential
of an inner product over thousands of channels, which overflows if it is computed as printed; these
functions take its logarithm, the logit.

Shapes: B images in the batch, P landmarks (K in the paper), C channels, H, W feature-map height and
width. The paper's occlusion awareness score (OAScore) is 1 for a visible landmark: visibility here.
"""

from __future__ import annotations

import torch

from occluded_reid.modeling.layers import run_in_float32


@run_in_float32
def landmark_responses(features: torch.Tensor, patterns: torch.Tensor) -> torch.Tensor:
    """Return the logits ``i_k . F(w, h)`` (B, P, H, W), whose exponential is ``phi`` (Sec. 3.2).

    >>> landmark_responses(torch.randn(2, 16, 8, 4), torch.randn(6, 16)).shape
    torch.Size([2, 6, 8, 4])

    Args:
        features: F (B, C, H, W).
        patterns: I (P, C), the weights of a 1x1 convolution without bias.
    """
    return torch.einsum("bchw,pc->bphw", features, patterns)


def normalized_maps(responses: torch.Tensor) -> torch.Tensor:
    """Normalize the logits (B, P, H, W) over all pixels: each map sums to 1 (SLFea, Eq. 2)."""
    return responses.flatten(2).softmax(dim=2).view_as(responses)


def visibility_scores(responses: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
    """Return the OAScore beta (B, P) in [0, 1], 1 = visible (Eq. 3, 4).

    Eq. 4 sums, over all pixels, a softmax over the pixels and the average response. With S the sum
    of ``phi`` over the pixels, that is ``S / (S + exp(a))``: the sigmoid of ``log S - a``.

    >>> visibility_scores(torch.zeros(1, 1, 16, 8), torch.zeros(1)).item()  # 128 / 129
    0.9922480583190918

    Args:
        responses: logits (B, P, H, W).
        average: a (P,), logits ``i_k . m_k``.
    """
    return (responses.flatten(2).logsumexp(dim=2) - average).sigmoid()


def referenced_maps(maps: torch.Tensor, visibility: torch.Tensor) -> torch.Tensor:
    """Return the referenced response maps (B, P, H, W); each sums to its visibility (Eq. 3).

    The average response is in the denominator of every pixel alike. So a referenced map is the
    normalized map of Eq. 2 times the landmark's beta (B, P), with its maximum at the same pixel.
    """
    return maps * visibility[..., None, None]


@run_in_float32
def pool_landmarks(features: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Return ``f_k = F R_k`` (B, P, C): SLFea (Sec. 3.2) or OAFea (Sec. 3.4), as the maps are.

    Args:
        features: F (B, C, H, W).
        maps: R (B, P, H, W).
    """
    return torch.einsum("bchw,bphw->bpc", features, maps)
