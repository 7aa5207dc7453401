"""AONet's Eq. 8 as printed.

Shapes: Q queries, G gallery images, P landmarks (K in the paper), C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

Side = tuple[torch.Tensor, torch.Tensor]


def similarities(query: Side, gallery: Side) -> torch.Tensor:
    """Return (Q, G): the mean over landmarks of ``beta_q beta_g cos(f_q, f_g)``.

    Cosines are computed as in fast-reid: both sides are normalized, then multiplied.

    Args:
        query: Features (Q, P, C) and visibility (Q, P).
        gallery: The same for G images.
    """
    (features, visibility), (other_features, other_visibility) = query, gallery
    landmarks = features.shape[1]
    total = torch.zeros(len(features), len(other_features))
    for landmark in range(landmarks):
        unit = F.normalize(features[:, landmark], dim=1)
        cosines = unit @ F.normalize(other_features[:, landmark], dim=1).T
        weight = visibility[:, landmark, None] * other_visibility[None, :, landmark]
        total = total + weight * cosines
    return total / landmarks
