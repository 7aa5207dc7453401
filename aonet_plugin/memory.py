"""The memorized dictionary: one running mean feature per landmark (Sec. 3.1).

Inference reads it too, so it belongs to what is exported.

Shapes: B images in the batch, P landmarks, C channels, H, W feature-map height and width.
"""

from __future__ import annotations

import torch
from torch import nn

from aonet_plugin.landmarks import pool_landmarks
from occluded_reid.utils.distributed import sum_across_ranks


def peak_features(features: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
    """Return the feature ``F R~_k`` (B, P, C) where each landmark responds most (Sec. 3.1).

    The pixels of the largest response are those of the largest referenced response; the logits tell
    them apart even where a softmax rounds. The paper sums over pixels that share the maximum; we
    take their mean, so that a tie does not make a feature longer.

    Args:
        features: F (B, C, H, W).
        responses: logits (B, P, H, W).
    """
    highest = responses.amax(dim=(2, 3), keepdim=True)
    peaks = (responses == highest).to(responses.dtype)
    return pool_landmarks(features, peaks / peaks.sum(dim=(2, 3), keepdim=True))


class LandmarkMemory(nn.Module):
    """M, zero at first.

    State is changed by :meth:`update` alone, in place: a CUDA graph finds the buffer at the address
    that it was recorded with. What a backward pass is to hold must be a copy.

    Args:
        num_landmarks: P.
        dim: C.
        momentum: alpha in Eq. 1, in [0, 1]: the share of an entry that survives an update.
    """

    features: torch.Tensor

    def __init__(self, *, num_landmarks: int, dim: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("features", torch.zeros(num_landmarks, dim))

    def average_responses(self, patterns: torch.Tensor) -> torch.Tensor:
        """Return the logits a (P,) of ``phi(i_k, m_k)``, with the patterns' gradient (Sec. 3.3).

        Args:
            patterns: I (P, C).
        """
        return (patterns.to(self.features.dtype) * self.features.clone()).sum(dim=1)

    def update(
        self, features: torch.Tensor, responses: torch.Tensor, weights: torch.Tensor | None = None
    ) -> None:
        """Move every entry towards the batch mean of its landmark's peaks (Eq. 1).

        The mean is over the images of all ranks. An entry whose landmark weighs nothing in any
        image stays as it is. Nothing happens in evaluation mode or where gradients are off:
        PreciseBN runs the model in training mode without gradients.

        Args:
            features: F (B, C, H, W), this rank's.
            responses: logits (B, P, H, W).
            weights: (B, P), what an image counts in the mean; None for 1.
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
            moved = self.momentum * self.features + (1 - self.momentum) * means
            self.features.copy_(torch.where(counted, moved, self.features))
