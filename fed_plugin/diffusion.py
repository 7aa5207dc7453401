"""The feature diffusion module: other people's features mixed into a person's. Training only.

Shapes: B images in the batch, P parts, C channels, D = P * C, I identities, K neighbours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fed_plugin.memory import cosine_to_centres
from occluded_reid.modeling.layers import build_neck, to_float32


@torch.no_grad()
def nearest_other_identities(
    features: torch.Tensor, centres: torch.Tensor, identities: torch.Tensor, num_neighbors: int
) -> torch.Tensor:
    """Return the memory search's result: the rows (B, K) of the nearest centres (Sec. 3.2).

    Nearest by cosine, the image's own identity left out. With fewer than ``num_neighbors`` other
    identities K is their number.

    Args:
        features: (B, D).
        centres: (I, D).
        identities: (B,), in 0..I-1.
        num_neighbors: K.
    """
    similarity = cosine_to_centres(features, centres)
    similarity = similarity.scatter(1, identities[:, None], float("-inf"))
    return similarity.topk(min(num_neighbors, len(centres) - 1), dim=1).indices


class CentreAttention(nn.Module):
    """Multi-head cross attention from a feature to its neighbours' centres (Eq. 4-6).

    Args:
        dim: D.
        num_heads: divides D.
        scale: factor of the logits; 0 for 1 / sqrt(D / heads).

    Raises:
        ValueError: the heads do not divide D.
    """

    def __init__(self, *, dim: int, num_heads: int, scale: float = 0.0):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{num_heads} heads (MODEL.FED.NUM_HEADS) cannot share {dim} channels")
        self.num_heads = num_heads
        self.scale = scale or (dim // num_heads) ** -0.5
        self.query = nn.Linear(dim, dim, bias=False)  # W^1
        self.key = nn.Linear(dim, dim, bias=False)  # W^2
        self.value = nn.Linear(dim, dim, bias=False)  # W^3
        self.output = nn.Linear(dim, dim, bias=False)  # joins the heads; not in the paper

    def forward(
        self, features: torch.Tensor, centres: torch.Tensor, neighbors: torch.Tensor
    ) -> torch.Tensor:
        """Return f_d (B, D): for each feature the weighted sum of its neighbours' values.

        Args:
            features: (B, D).
            centres: (I, D).
            neighbors: (B, K), rows of ``centres``. With K = 0 the sum is empty, that is zero.
        """
        return self.output(self.mixed(features, centres, neighbors).flatten(1))

    def mixed(
        self, features: torch.Tensor, centres: torch.Tensor, neighbors: torch.Tensor
    ) -> torch.Tensor:
        """Return each head's weighted sum of values (B, heads, D / heads)."""
        query = self.query(features).unflatten(1, (self.num_heads, -1))  # (B, heads, d)
        key, value = (
            layer.weight.unflatten(0, (self.num_heads, -1)) for layer in (self.key, self.value)
        )  # (heads, d, D)
        # q (W c) = (q W) c, and the sum of w W c is W times the sum of w c: the layers are applied
        # to B rows, not to all I centres, nor to the B K that were found
        wanted = torch.einsum("bhd,hdc->bhc", query, key)  # (B, heads, D)
        near = F.embedding(neighbors, centres)  # (B, K, D)
        logits = torch.einsum("bhc,bkc->bhk", wanted, near) * self.scale
        weights = to_float32(logits).softmax(dim=2)  # Eq. 5
        mixture = torch.einsum("bhk,bkc->bhc", weights.to(near.dtype), near)
        return torch.einsum("bhc,hdc->bhd", mixture, value)  # Eq. 6


class FeedForward(nn.Module):
    """FFN_1 and FFN_2: ``LayerNorm(x + W_2 GELU(W_1 x))``, on each part by itself.

    The paper cites the post-norm form and names no activation; we take GELU.

    Args:
        dim: C.
        ratio: hidden size over C.
    """

    def __init__(self, *, dim: int, ratio: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, ratio * dim), nn.GELU(), nn.Linear(ratio * dim, dim)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, parts: torch.Tensor) -> torch.Tensor:
        """Transform ``parts`` (..., C)."""
        return self.norm(parts + self.layers(parts))


class FeatureDiffusion(nn.Module):
    """Simulates other pedestrians beside the target, in the feature space (Sec. 3.2).

    Args:
        dim: C.
        num_parts: P.
        num_neighbors: K.
        num_heads: heads of the attention.
        attention_scale: factor of its logits; 0 for the inverse root of a head's size.
        normalize_centres: scale the centres to unit length before they become keys and values.
        ffn_ratio: hidden size of the feed-forward layers over C.
        neck: have a batch normalisation at the end.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_parts: int,
        num_neighbors: int,
        num_heads: int,
        attention_scale: float = 0.0,
        normalize_centres: bool = True,
        ffn_ratio: int = 4,
        neck: bool = True,
    ):
        super().__init__()
        self.num_parts = num_parts
        self.num_neighbors = num_neighbors
        self.normalize_centres = normalize_centres
        self.attention = CentreAttention(
            dim=num_parts * dim, num_heads=num_heads, scale=attention_scale
        )
        self.first_ffn = FeedForward(dim=dim, ratio=ffn_ratio)
        self.second_ffn = FeedForward(dim=dim, ratio=ffn_ratio)
        self.neck = build_neck(num_parts * dim, neck)

    def forward(
        self,
        embedding: torch.Tensor,
        visibility: torch.Tensor,
        identities: torch.Tensor,
        centres: torch.Tensor,
    ) -> torch.Tensor:
        """Return the diffused feature f'_d, through its neck (Eq. 7).

        Other people are added where the person is visible: the paper's symbol is the mask, its text
        says the scores of the erasing module; we take the scores.

        Args:
            embedding: (B, D), f'.
            visibility: (B, P) in [0, 1].
            identities: (B,), in 0..I-1.
            centres: (I, D) of the first bank.
        """
        neighbors = nearest_other_identities(embedding, centres, identities, self.num_neighbors)
        # either is a copy: the bank moves before the backward pass
        centres = F.normalize(centres, dim=1) if self.normalize_centres else centres.clone()
        attended = self.attention(embedding, centres, neighbors)
        others = self.first_ffn(attended.unflatten(1, (self.num_parts, -1)))  # (B, P, C)
        person = embedding.unflatten(1, (self.num_parts, -1))
        diffused = self.second_ffn(visibility[..., None] * others + person)
        return self.neck(diffused.flatten(1))
