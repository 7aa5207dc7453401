"""The memory banks: one centre per identity (Sec. 3.2). Training only.

Shapes: B images in the batch, I identities, D size of a feature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from occluded_reid.modeling.layers import run_in_float32
from occluded_reid.utils.distributed import sum_across_ranks


@run_in_float32
def cosine_to_centres(features: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Return the cosine similarity (B, I) of features (B, D) and centres (I, D).

    In float32 (or wider) even under autocast: divided by the temperature 0.05, an error of 0.004,
    which bfloat16 makes, would be one of 0.08 in a logit.
    """
    return F.normalize(features, dim=1) @ F.normalize(centres, dim=1).T


class IdentityMemory(nn.Module):
    """One running mean feature per identity.

    State is changed by :meth:`initialize` and :meth:`update` alone, in place: a CUDA graph finds
    the buffers at the address that it was recorded with. What a backward pass is to hold must be a
    copy; PyTorch stops where it is not.

    Args:
        num_identities: I.
        dim: D.
        momentum: m in Eq. 3, in [0, 1]: the share of a centre that survives an update.
    """

    centres: torch.Tensor
    initialized: torch.Tensor
    identities: torch.Tensor

    def __init__(self, *, num_identities: int, dim: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centres", torch.zeros(num_identities, dim))
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))
        # a digest of the identities' names, so that a resumed run notices another data set
        self.register_buffer("identities", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def initialize(self, features: torch.Tensor, identities: torch.Tensor, digest: int = 0) -> None:
        """Set every centre to the mean of its identity's features (Sec. 3.2, as in SpCL).

        Args:
            features: (B, D), this rank's share of the training set.
            identities: (B,), in 0..I-1.
            digest: tells one list of identities from another, in -2**63..2**63-1.

        Raises:
            ValueError: an identity has no feature on any rank.
        """
        sums, counts = self._sums_and_counts(features, identities)
        missing = int((counts == 0).sum())
        if missing:
            raise ValueError(f"{missing} of {len(counts)} identities have no feature")
        self.centres.copy_(sums / counts[:, None])
        self.initialized.fill_(True)
        self.identities.fill_(digest)

    def update(self, features: torch.Tensor, identities: torch.Tensor) -> None:
        """Move the centres of the identities in the global batch towards their batch mean (Eq. 3).

        Nothing happens in evaluation mode or where gradients are off: PreciseBN runs the model in
        training mode without gradients on labels that mean nothing.

        Args:
            features: (B, D), this rank's.
            identities: (B,), in 0..I-1.
        """
        if not (self.training and torch.is_grad_enabled()):
            return
        with torch.no_grad():
            sums, counts = self._sums_and_counts(features, identities)
            means = sums / counts.clamp(min=1)[:, None]
            moved = self.momentum * self.centres + (1 - self.momentum) * means
            self.centres.copy_(torch.where(counts[:, None] > 0, moved, self.centres))

    def _sums_and_counts(
        self, features: torch.Tensor, identities: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum the features (I, D) and count them (I,) by identity, over all ranks."""
        features = features.detach().to(self.centres.dtype)
        rows = torch.cat([features, features.new_ones(len(features), 1)], dim=1)
        totals = rows.new_zeros(len(self.centres), rows.shape[1])
        totals = sum_across_ranks(totals.index_add_(0, identities, rows))
        return totals[:, :-1], totals[:, -1]
