"""The neck of a ReID head: what stands between features and classifiers in both methods."""

from __future__ import annotations

from torch import nn


def build_neck(dim: int, enabled: bool) -> nn.Module:
    """Batch normalisation of (B, dim) with a frozen bias, or nothing.

    One BatchNorm1d over flattened parts is the same as one per part: it treats every channel of
    every part by itself.
    """
    if not enabled:
        return nn.Identity()
    neck = nn.BatchNorm1d(dim)
    neck.bias.requires_grad_(False)
    return neck
