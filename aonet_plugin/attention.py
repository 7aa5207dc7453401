"""The self-attention block, in which an image's landmarks inform each other (Sec. 3.5, Fig. 2).

Shapes: B images in the batch, P landmarks, C channels.
"""

from __future__ import annotations

import torch
from torch import nn

from occluded_reid.modeling.layers import run_in_float32


class GatedAttention(nn.Module):
    """``f + gate * softmax(q k^T) v`` over the landmarks: one block in the manner of SAGAN.

    The gate starts at 0, so that the features after the block start as those before it.

    Args:
        dim: C.
        reduction: query and key have C / reduction channels.

    Raises:
        ValueError: more reduction than channels.
    """

    def __init__(self, *, dim: int, reduction: int):
        super().__init__()
        if not 1 <= reduction <= dim:
            raise ValueError(
                f"{dim} channels cannot be reduced {reduction} times "
                "(MODEL.AONET.ATTENTION_REDUCTION)"
            )
        self.query = nn.Linear(dim, dim // reduction)
        self.key = nn.Linear(dim, dim // reduction)
        self.value = nn.Linear(dim, dim)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, landmarks: torch.Tensor) -> torch.Tensor:
        """Return the landmarks (B, P, C), each with its share of the others."""
        logits = self._logits(landmarks)
        values = self.value(landmarks)
        return landmarks + self.gate * (logits.softmax(dim=2).to(values.dtype) @ values)

    @run_in_float32  # float16 ends at 65,504
    def _logits(self, landmarks: torch.Tensor) -> torch.Tensor:
        return self.query(landmarks) @ self.key(landmarks).transpose(1, 2)  # (B, P, P)


class MultiHeadAttention(nn.Module):
    """``LayerNorm(f + attention(f))`` with several heads: half a transformer block, post-norm.

    Args:
        dim: C.
        num_heads: divides C.

    Raises:
        ValueError: the heads do not divide C.
    """

    def __init__(self, *, dim: int, num_heads: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(
                f"{num_heads} heads (MODEL.AONET.ATTENTION_HEADS) cannot share {dim} channels"
            )
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(self, landmarks: torch.Tensor) -> torch.Tensor:
        """Return the landmarks (B, P, C), each with its share of the others."""
        mixed, _ = self.attention(landmarks, landmarks, landmarks, need_weights=False)
        return self.norm(landmarks + mixed)


def build_attention(kind: str, *, dim: int, reduction: int, num_heads: int) -> nn.Module | None:
    """Return the block that ``MODEL.AONET.SELF_ATTENTION`` names, or None.

    Args:
        kind: ``sagan``, ``multi_head`` or ``none``.
        dim: C.
        reduction: of ``sagan``.
        num_heads: of ``multi_head``.
    """
    if kind == "sagan":
        return GatedAttention(dim=dim, reduction=reduction)
    if kind == "multi_head":
        return MultiHeadAttention(dim=dim, num_heads=num_heads)
    return None
