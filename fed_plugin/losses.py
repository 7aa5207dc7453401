"""FED's losses (Sec. 3.3): functions of tensors, computed in float32 or wider under autocast too.

Shapes: B images in the batch, P parts, D feature dimensions, I identities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F

from fed_plugin.memory import cosine_to_centres
from occluded_reid.modeling.layers import run_in_float32


class Term(NamedTuple):
    """One of the twelve terms of Eq. 10.

    Attributes:
        kind: ``visibility`` (Eq. 2), ``identity`` (Eq. 8) or ``contrast`` (Eq. 9).
        feature: ``class_token``, ``erased`` or ``diffused``; empty for ``visibility``.
        branch: ``holistic`` or ``occluded``.
    """

    kind: str
    feature: str
    branch: str

    @property
    def name(self) -> str:
        """The name in logs and metrics.json, ``loss_identity_erased_holistic``."""
        return "_".join(filter(None, ("loss", *self)))


@run_in_float32
def visibility_loss(visibility: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return L_MSE: squared error of the OEM's scores, mean over parts and images (Eq. 2).

    >>> visibility_loss(torch.tensor([[1.0, 0.5]]), torch.tensor([[1.0, 0.0]])).item()
    0.125

    Args:
        visibility: (B, P), the paper's occlusion scores, in [0, 1], 1 = visible.
        labels: (B, P), the paper's occlusion masks: 1 = visible, 0 = occluded.
    """
    return F.mse_loss(visibility, labels.to(visibility.dtype))


@run_in_float32
def identity_loss(logits: torch.Tensor, identities: torch.Tensor) -> torch.Tensor:
    """Return L_ID: cross entropy of the logits W f (B, I), mean over images (Eq. 8).

    >>> identity_loss(torch.zeros(1, 4), torch.tensor([0])).item()  # log 4
    1.3862943649291992
    """
    return F.cross_entropy(logits, identities)


def memory_contrast_loss(
    features: torch.Tensor, centres: torch.Tensor, identities: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Return L_C: InfoNCE of features against all centres by cosine, mean over images (Eq. 9).

    The centre of the image's own identity is the positive. ``features`` are (B, D), ``centres``
    (I, D) without gradient, ``identities`` (B,) in 0..I-1; ``temperature`` is tau.

    >>> centres, identities = torch.randn(5, 8), torch.tensor([3, 1])
    >>> loss = memory_contrast_loss(torch.randn(2, 8), centres, identities, temperature=0.05)
    """
    return F.cross_entropy(cosine_to_centres(features, centres) / temperature, identities)


def weight_terms(
    terms: Mapping[Term, torch.Tensor], weights: Mapping[str, float], *, num_branches: int
) -> dict[str, torch.Tensor]:
    """Weight the terms so that they sum to the final loss (Eq. 10), and name them for the log.

    The ``weights`` are by kind. The sums in Eq. 10 run over the holistic and the occluded branch.
    Without occluded images, each term of the one branch counts twice, as if every image were paired
    with itself.
    """
    repeats = 2 / num_branches
    return {term.name: repeats * weights[term.kind] * value for term, value in terms.items()}
