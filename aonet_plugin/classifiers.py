"""The classifiers behind the probabilities of Eq. 5, which only training needs."""

from __future__ import annotations

import torch
from torch import nn


class LandmarkClassifiers(nn.Module):
    """One linear classifier without bias for each of P landmarks.

    >>> LandmarkClassifiers(dim=16, num_identities=8, num_landmarks=6)(torch.ones(2, 6, 16)).shape
    torch.Size([2, 6, 8])
    """

    def __init__(self, *, dim: int, num_identities: int, num_landmarks: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_identities, num_landmarks, dim))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits (..., P, I) of landmark features (..., P, C)."""
        return torch.einsum("...pc,ipc->...pi", features, self.weight)


def build_classifier(
    kind: str, *, dim: int, num_identities: int, num_landmarks: int
) -> nn.Linear | LandmarkClassifiers:
    """Build what ``MODEL.AONET.CLASSIFIERS`` names, from features (..., P, C) to (..., P, I)."""
    classifier: nn.Linear | LandmarkClassifiers
    if kind == "per_landmark":
        classifier = LandmarkClassifiers(
            dim=dim, num_identities=num_identities, num_landmarks=num_landmarks
        )
    else:
        classifier = nn.Linear(dim, num_identities, bias=False)
    nn.init.normal_(classifier.weight, std=0.001)  # small, so that it starts undecided
    return classifier
