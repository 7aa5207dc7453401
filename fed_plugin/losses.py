"""FED's losses (Sec. 3.3): functions of tensors, in float32 or wider also under autocast.

Shapes: B images in the batch, P parts, D size of a feature, I identities.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from fed_plugin.memory import cosine_to_centres
from occluded_reid.modeling.layers import run_in_float32


@run_in_float32
def visibility_loss(visibility: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the squared error of the visibility scores, mean over parts and images (Eq. 2).

    Args:
        visibility: (B, P), the paper's occlusion scores, in [0, 1], 1 = visible.
        labels: (B, P), the paper's occlusion masks: 1 = visible, 0 = occluded.
    """
    return F.mse_loss(visibility, labels.to(visibility.dtype))


@run_in_float32
def identity_loss(logits: torch.Tensor, identities: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy, mean over images (Eq. 8).

    Args:
        logits: (B, I), W f of Eq. 8.
        identities: (B,), in 0..I-1.
    """
    return F.cross_entropy(logits, identities)


def memory_contrast_loss(
    features: torch.Tensor, centres: torch.Tensor, identities: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Return the contrast of features to all centres, mean over images (Eq. 9).

    The centre of the image's own identity is the positive one. Features and centres are compared
    by cosine.

    Args:
        features: (B, D).
        centres: (I, D), without gradient.
        identities: (B,), in 0..I-1.
        temperature: tau.
    """
    return F.cross_entropy(cosine_to_centres(features, centres) / temperature, identities)


def weighted_terms(
    terms: Mapping[str, torch.Tensor], weights: Mapping[str, float], *, num_branches: int
) -> dict[str, torch.Tensor]:
    """Return the terms of the final loss, weighted so that they sum to it (Eq. 10).

    The sums of Eq. 10 run over two branches, the holistic and the occluded images. Where there are
    no occluded images, the one branch stands for both: each of its terms counts twice, as if the
    same image had come as the pair.

    Args:
        terms: scalars by names whose first word (``visibility``, ``identity``, ...) is the kind.
        weights: the weight in Eq. 10 by kind.
        num_branches: 1 or 2.

    Returns:
        The weighted scalars; each name gets the prefix ``loss_``.
    """
    repeats = 2 / num_branches
    return {
        f"loss_{name}": repeats * weights[name.split("_")[0]] * value
        for name, value in terms.items()
    }
