"""The memorized dictionary: one running mean feature per landmark (Sec. 3.1).

Inference reads it too, so it is exported with the model.

Shapes: B images in the batch, P landmarks, C channels, H, W feature-map height and width.
"""

from __future__ import annotations

import torch
from torch import nn

from aonet_plugin.landmarks import pool_landmarks
from occluded_reid.utils.distributed import sum_across_ranks


def peak_features(features: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
    """Return the features ``F R~_k`` (B, P, C) at each landmark's maximal response (Sec. 3.1).

    F is (B, C, H, W), ``responses`` are logits (B, P, H, W). A pixel of maximal response has the
    maximal referenced response too; the logits separate pixels even where a softmax rounds them to
    equal values. The paper sums over pixels that share the maximum; we average, so that a tie does
    not change the norm.
    """
    highest = responses.amax(dim=(2, 3), keepdim=True)
    peaks = (responses == highest).to(responses.dtype)
    return pool_landmarks(features, peaks / peaks.sum(dim=(2, 3), keepdim=True))


class LandmarkMemory(nn.Module):
    """M, the memorized dictionary, zero at first (Eq. 1).

    State changes in :meth:`update` alone, and in place, since a CUDA graph records the buffer's
    address. A backward pass must therefore hold a copy.

    >>> memory = LandmarkMemory(num_landmarks=1, dim=2, momentum=0.9)
    >>> memory.update(torch.ones(4, 2, 16, 8), responses=torch.randn(4, 1, 16, 8))
    >>> memory.features
    tensor([[0.1000, 0.1000]])

    Args:
        num_landmarks: P.
        dim: C.
        momentum: alpha in Eq. 1, the share of an entry that survives an update, in [0, 1].
    """

    features: torch.Tensor

    def __init__(self, *, num_landmarks: int, dim: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("features", torch.zeros(num_landmarks, dim))

    def average_responses(self, patterns: torch.Tensor) -> torch.Tensor:
        """Return the logits a (P,) of ``phi(i_k, m_k)``, differentiable in I (P, C) (Sec. 3.3)."""
        return (patterns.to(self.features.dtype) * self.features.clone()).sum(dim=1)

    def update(
        self, features: torch.Tensor, responses: torch.Tensor, weights: torch.Tensor | None = None
    ) -> None:
        """Move every entry towards the mean of its landmark's peaks over all ranks' images (Eq. 1).

        F (B, C, H, W) and the logits (B, P, H, W) are this rank's; ``weights`` (B, P) weight the
        images, None equally. An entry whose landmark has no weight in any image stays as it is.
        Does nothing in evaluation mode or without gradients: PreciseBN runs the model in training
        mode without gradients.
        """
        if not (self.training and torch.is_grad_enabled()):
            return
        with torch.no_grad():
            peaks = peak_features(features, responses).to(self.features.dtype)
            counts = torch.ones_like(peaks[..., :1]) if weights is None else weights[..., None]
            rows = torch.cat([counts * peaks, counts.to(peaks.dtype)], dim=2).sum(dim=0)
            totals = sum_across_ranks(rows)  # (P, C + 1)
            sums, counts = totals[:, :-1], totals[:, -1:]
            counted = counts > 0
            means = sums / counts.where(counted, 1)
            updated = self.momentum * self.features + (1 - self.momentum) * means
            self.features.copy_(torch.where(counted, updated, self.features))
