"""AONet's Eq. 8 as it is printed.

Shapes: Q queries, G gallery images, P landmarks (K in the paper), C channels.
"""

from __future__ import annotations

import torch

Side = tuple[torch.Tensor, torch.Tensor]


def similarities(query: Side, gallery: Side) -> torch.Tensor:
    """Return (Q, G): the mean over landmarks of ``beta_q beta_g cos(f_q, f_g)``.

    Args:
        query: features (Q, P, C) of unit length and visibility (Q, P).
        gallery: likewise.
    """
    (features, visibility), (other_features, other_visibility) = query, gallery
    landmarks = features.shape[1]
    total = torch.zeros(len(features), len(other_features))
    for landmark in range(landmarks):
        cosines = features[:, landmark] @ other_features[:, landmark].T
        weight = visibility[:, landmark, None] * other_visibility[None, :, landmark]
        total = total + weight * cosines
    return total / landmarks
