"""The memory banks: one centre per identity (Sec. 3.2). Training only.

Shapes: B images in the batch, I identities, D feature dimensions.
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

    bfloat16 would be off by 0.004; divided by the temperature 0.05, that is 0.08 in a logit.
    """
    return F.normalize(features, dim=1) @ F.normalize(centres, dim=1).T


class IdentityMemory(nn.Module):
    """A memory bank: one running mean feature per identity (Eq. 3).

    State changes in :meth:`initialize` and :meth:`update` alone, and in place, since a CUDA graph
    records the buffers' addresses. A backward pass must therefore hold a copy of the centres;
    PyTorch raises an error if it does not.

    >>> memory = IdentityMemory(num_identities=2, dim=3, momentum=0.2)
    >>> memory.initialize(torch.zeros(2, 3), torch.tensor([0, 1]))
    >>> memory.update(torch.ones(1, 3), torch.tensor([1]))
    >>> memory.centres.tolist()
    [[0.0, 0.0, 0.0], [0.800000011920929, 0.800000011920929, 0.800000011920929]]

    Args:
        num_identities: I.
        dim: D.
        momentum: m in Eq. 3, the share of a centre that survives an update, in [0, 1].
        normalize: scale features to unit norm before their mean is taken.
    """

    centres: torch.Tensor
    initialized: torch.Tensor
    identities: torch.Tensor

    def __init__(self, *, num_identities: int, dim: int, momentum: float, normalize: bool = False):
        super().__init__()
        self.normalize = normalize
        self.momentum = momentum
        self.register_buffer("centres", torch.zeros(num_identities, dim))
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))
        # digest of the identities' names: a resumed run notices another data set
        self.register_buffer("identities", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def initialize(self, features: torch.Tensor, identities: torch.Tensor, digest: int = 0) -> None:
        """Set every centre to the mean of its identity's features (Sec. 3.2, as in SpCL).

        Args:
            features: (B, D), this rank's share of the training set.
            identities: (B,), in 0..I-1; a ValueError is raised for one without a feature.
            digest: of the identities' names, in -2**63..2**63-1.
        """
        sums, counts = self._sum_by_identity(features, identities)
        if missing := int((counts == 0).sum()):
            raise ValueError(f"{missing} of {len(counts)} identities have no feature")
        self.centres.copy_(sums / counts[:, None])
        self.initialized.fill_(True)
        self.identities.fill_(digest)

    def update(self, features: torch.Tensor, identities: torch.Tensor) -> None:
        """Move the centres of the identities in the global batch towards their batch mean (Eq. 3).

        ``features`` (B, D) are this rank's. Does nothing in evaluation mode or without gradients:
        PreciseBN runs the model in training mode without gradients, on meaningless labels.
        """
        if not (self.training and torch.is_grad_enabled()):
            return
        with torch.no_grad():
            self.centres.copy_(self._updated_centres(features, identities))

    def _updated_centres(self, features: torch.Tensor, identities: torch.Tensor) -> torch.Tensor:
        sums, counts = self._sum_by_identity(features, identities)
        means = sums / counts.clamp(min=1)[:, None]
        updated = self.momentum * self.centres + (1 - self.momentum) * means
        return torch.where(counts[:, None] > 0, updated, self.centres)

    def _sum_by_identity(
        self, features: torch.Tensor, identities: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum (I, D) and number (I,) of each identity's features, over all ranks."""
        features = features.detach().to(self.centres.dtype)
        if self.normalize:
            features = F.normalize(features, dim=1)
        rows = torch.cat([features, features.new_ones(len(features), 1)], dim=1)
        totals = rows.new_zeros(len(self.centres), rows.shape[1])
        totals = sum_across_ranks(totals.index_add_(0, identities, rows))
        return totals[:, :-1], totals[:, -1]
