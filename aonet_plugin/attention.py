"""SAtt: self-attention among an image's landmarks (Sec. 3.5, Fig. 2).

Shapes: B images in the batch, P landmarks, C channels.
"""

from __future__ import annotations

import torch
from torch import nn

from occluded_reid.modeling.layers import run_in_float32


class GatedAttention(nn.Module):
    """SAtt as one SAGAN-style block: ``f + gate * softmax(q k^T) v`` over the landmarks.

    The gate starts at 0, so that features after the block start equal to those before it. Query and
    key have ``dim / reduction`` channels.

    >>> GatedAttention(dim=16, reduction=8)(torch.randn(2, 6, 16)).shape
    torch.Size([2, 6, 16])
    """

    def __init__(self, *, dim: int, reduction: int):
        super().__init__()
        self.query = nn.Linear(dim, dim // reduction)
        self.key = nn.Linear(dim, dim // reduction)
        self.value = nn.Linear(dim, dim)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, landmarks: torch.Tensor) -> torch.Tensor:
        """Mix each of the landmarks (B, P, C) with the others."""
        logits = self._logits(landmarks)
        values = self.value(landmarks)
        return landmarks + self.gate * (logits.softmax(dim=2).to(values.dtype) @ values)

    @run_in_float32  # the largest float16 is 65,504
    def _logits(self, landmarks: torch.Tensor) -> torch.Tensor:
        return self.query(landmarks) @ self.key(landmarks).transpose(1, 2)  # (B, P, P)


class MultiHeadAttention(nn.Module):
    """SAtt as half a post-norm transformer block: ``LayerNorm(f + attention(f))``."""

    def __init__(self, *, dim: int, num_heads: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(self, landmarks: torch.Tensor) -> torch.Tensor:
        """Mix each of the landmarks (B, P, C) with the others."""
        mixed, _ = self.attention(landmarks, landmarks, landmarks, need_weights=False)
        return self.norm(landmarks + mixed)


def build_attention(kind: str, *, dim: int, reduction: int, num_heads: int) -> nn.Module | None:
    """Build the block that ``MODEL.AONET.SELF_ATTENTION`` names; None for ``none``."""
    if kind == "sagan":
        return GatedAttention(dim=dim, reduction=reduction)
    if kind == "multi_head":
        return MultiHeadAttention(dim=dim, num_heads=num_heads)
    return None
