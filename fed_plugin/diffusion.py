"""The feature diffusion module (FDM, Sec. 3.2). Training only.

Shapes: B images in the batch, P parts, C channels, D = P * C, I identities, K neighbors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fed_plugin.memory import cosine_to_centres
from occluded_reid.modeling.layers import to_float32


@torch.no_grad()
def nearest_other_identities(
    features: torch.Tensor, centres: torch.Tensor, identities: torch.Tensor, num_neighbors: int
) -> torch.Tensor:
    """Search the memory: indices (B, K) of the nearest centres of other identities (Sec. 3.2).

    Nearest by cosine; K is ``num_neighbors``, or the number of other identities if that is less.
    ``features`` are (B, D), ``centres`` (I, D), ``identities`` (B,) in 0..I-1.

    >>> centres = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> nearest_other_identities(torch.tensor([[1.0, 0.0]]), centres, torch.tensor([0]), 1)
    tensor([[1]])
    """
    similarity = cosine_to_centres(features, centres)
    similarity = similarity.scatter(1, identities[:, None], float("-inf"))
    return similarity.topk(min(num_neighbors, len(centres) - 1), dim=1).indices


class CentreAttention(nn.Module):
    """Multi-head cross attention from a feature to its neighbors' centres (Eq. 4-6).

    The number of heads divides D = ``dim``; ``scale`` 0 scales the logits by 1 / sqrt(D / heads).
    """

    def __init__(self, *, dim: int, num_heads: int, scale: float = 0.0, output_bias: bool = False):
        super().__init__()
        self.num_heads = num_heads
        self.scale = scale or (dim // num_heads) ** -0.5
        self.query = nn.Linear(dim, dim, bias=False)  # W^1
        self.key = nn.Linear(dim, dim, bias=False)  # W^2
        self.value = nn.Linear(dim, dim, bias=False)  # W^3
        self.output = nn.Linear(dim, dim, bias=output_bias)  # joins the heads; not in the paper

    def forward(
        self, features: torch.Tensor, centres: torch.Tensor, neighbors: torch.Tensor
    ) -> torch.Tensor:
        """Return f_d (B, D): for each feature the weighted sum of its neighbors' values.

        ``neighbors`` (B, K) are indices of ``centres`` (I, D). With K = 0 the sum is zero.
        """
        return self.output(self.attend(features, centres, neighbors).flatten(1))

    def attend(
        self, features: torch.Tensor, centres: torch.Tensor, neighbors: torch.Tensor
    ) -> torch.Tensor:
        """Return each head's weighted sum of values (B, heads, D / heads)."""
        query = self.query(features).unflatten(1, (self.num_heads, -1))  # (B, heads, d)
        key = self.key.weight.unflatten(0, (self.num_heads, -1))  # (heads, d, D)
        value = self.value.weight.unflatten(0, (self.num_heads, -1))
        # q (W c) = (q W) c, and the sum of w W c is W times the sum of w c: project B rows
        # instead of I centres or B K neighbors
        projected_query = torch.einsum("bhd,hdc->bhc", query, key)  # (B, heads, D)
        near = F.embedding(neighbors, centres)  # (B, K, D)
        logits = torch.einsum("bhc,bkc->bhk", projected_query, near) * self.scale
        weights = to_float32(logits).softmax(dim=2)  # Eq. 5
        mixture = torch.einsum("bhk,bkc->bhc", weights.to(near.dtype), near)
        return torch.einsum("bhc,hdc->bhd", mixture, value)  # Eq. 6


class FeedForward(nn.Module):
    """FFN_1 and FFN_2: ``LayerNorm(x + W_2 GELU(W_1 x))`` on each part separately (Eq. 7).

    The paper cites the post-norm form and names no activation; we take GELU. The hidden size is
    ``ratio * dim``.
    """

    def __init__(self, *, dim: int, ratio: int):
        super().__init__()
        expand, contract = nn.Linear(dim, ratio * dim), nn.Linear(ratio * dim, dim)
        self.layers = nn.Sequential(expand, nn.GELU(), contract)
        self.norm = nn.LayerNorm(dim)

    def forward(self, parts: torch.Tensor) -> torch.Tensor:
        """Transform ``parts`` (..., C)."""
        return self.norm(parts + self.layers(parts))


class FeatureDiffusion(nn.Module):
    """FDM: simulates other pedestrians beside the target in feature space (Sec. 3.2, Eq. 4-7).

    >>> diffusion = FeatureDiffusion(
    ...     num_parts=4, num_neighbors=2, normalize_centres=True, neck=nn.Identity(),
    ...     attention=CentreAttention(dim=4 * 8, num_heads=2),
    ...     first_ffn=FeedForward(dim=8, ratio=4), second_ffn=FeedForward(dim=8, ratio=4),
    ... )
    >>> visibility, identities = torch.ones(3, 4), torch.tensor([0, 1, 1])
    >>> diffusion(torch.randn(3, 32), visibility, identities, torch.randn(6, 32)).shape
    torch.Size([3, 32])

    Args:
        num_parts: P.
        num_neighbors: K.
        normalize_centres: scale the centres to unit norm before they become keys and values.
        attention: from features (B, D) to their neighbors' centres.
        first_ffn: FFN_1, on parts (B, P, C); ``second_ffn`` is FFN_2.
        neck: on the diffused features (B, D).
    """

    def __init__(
        self, *, num_parts: int, num_neighbors: int, normalize_centres: bool,
        attention: CentreAttention, first_ffn: nn.Module, second_ffn: nn.Module, neck: nn.Module,
    ):  # fmt: skip
        super().__init__()
        self.num_parts = num_parts
        self.num_neighbors = num_neighbors
        self.normalize_centres = normalize_centres
        self.attention = attention
        self.first_ffn = first_ffn
        self.second_ffn = second_ffn
        self.neck = neck

    def forward(
        self, embedding: torch.Tensor, visibility: torch.Tensor,
        identities: torch.Tensor, centres: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """Return the diffused feature f'_d (B, D) after its neck (Eq. 7).

        Other pedestrians are added where the person is visible. The paper's symbol is the mask, its
        text says the OEM's scores; we take the scores.

        Args:
            embedding: f' (B, D).
            visibility: (B, P) in [0, 1].
            identities: (B,), in 0..I-1.
            centres: (I, D) of the first bank.
        """
        neighbors = nearest_other_identities(embedding, centres, identities, self.num_neighbors)
        # copies in both cases: the bank is updated before the backward pass
        centres = F.normalize(centres, dim=1) if self.normalize_centres else centres.clone()
        attended = self.attention(embedding, centres, neighbors)
        others = self.first_ffn(attended.unflatten(1, (self.num_parts, -1)))  # (B, P, C)
        person = embedding.unflatten(1, (self.num_parts, -1))
        diffused = self.second_ffn(visibility[..., None] * others + person)
        return self.neck(diffused.flatten(1))
