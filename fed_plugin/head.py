"""From backbone features to one vector per image: all that inference needs.

Shapes: B images in the batch, P parts, C channels, T patch tokens, H, W feature-map height and
width. The paper's occlusion score is called visibility here, since 1 means visible.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from occluded_reid.modeling.layers import build_neck, split_tokens, to_float32
from occluded_reid.utils.errors import UserError


class PartFeatures(NamedTuple):
    """Output of :class:`FEDHead`.

    Attributes:
        class_token: (B, C), the global feature.
        visibility: (B, P), float32 in [0, 1], 1 = visible.
        erased: (B, P, C), part features times visibility, without neck.
        embedding: f' of Eq. 1, flattened to (B, P * C); the neck is before or after the erasing.
    """

    class_token: torch.Tensor
    visibility: torch.Tensor
    erased: torch.Tensor
    embedding: torch.Tensor


def pool_stripes(
    tokens: torch.Tensor, rows: int, num_parts: int, pooling: str = "mean"
) -> torch.Tensor:
    """Pool the tokens of each of P equal horizontal stripes, to (B, P, C) (Sec. 3).

    The ``tokens`` (B, T, C) are in raster order, so that a stripe is T / P consecutive tokens. P
    must divide the ``rows`` of the raster; ``pooling`` is mean or max.

    >>> pool_stripes(torch.randn(2, 16 * 8, 768), rows=16, num_parts=4).shape
    torch.Size([2, 4, 768])
    """
    if rows % num_parts:
        raise UserError(
            f"{rows} rows of features cannot be cut into {num_parts} equal stripes: change "
            "INPUT.SIZE_TRAIN and INPUT.SIZE_TEST, MODEL.BACKBONE.STRIDE_SIZE, or "
            "MODEL.FED.NUM_PARTS"
        )
    stripes = tokens.unflatten(1, (num_parts, -1))
    return stripes.amax(dim=2) if pooling == "max" else stripes.mean(dim=2)


class PartErasing(nn.Module):
    """OEM: scores the visibility of each part by a scorer of its own (Eq. 1).

    >>> PartErasing(dim=16, num_parts=4)(torch.randn(2, 4, 16)).shape
    torch.Size([2, 4])
    """

    def __init__(self, *, dim: int, num_parts: int, bias: bool = True):
        super().__init__()
        self.scorers = nn.ModuleList(
            nn.Sequential(
                # W_cp: compresses, keeps semantics, drops identity
                nn.Linear(dim, dim // 4, bias=bias),
                nn.LayerNorm(dim // 4),
                nn.Linear(dim // 4, 1, bias=bias),  # W_rg
            )
            for _ in range(num_parts)
        )

    def forward(self, parts: torch.Tensor) -> torch.Tensor:
        """Return the visibility (B, P) in [0, 1] of ``parts`` (B, P, C)."""
        scores = [scorer(parts[:, part]) for part, scorer in enumerate(self.scorers)]
        return to_float32(torch.cat(scores, dim=1).sigmoid())


def erase(parts: torch.Tensor, visibility: torch.Tensor) -> torch.Tensor:
    """Return f': the parts (B, P, C) times their visibility (B, P) (Eq. 1)."""
    return visibility[..., None] * parts


class FEDHead(nn.Module):
    """Part pooling, OEM, neck (Sec. 3, Eq. 1).

    Args:
        dim: C.
        num_parts: P.
        grid: rows and columns of the backbone's patches; None for feature maps.
        erasing: have the OEM; without it every part counts as visible.
        neck: have the batch normalization.
        neck_first: normalize the parts before they are erased, not after.
        pooling: of each stripe, mean or max.
        erasing_bias: give the OEM's linear layers biases.
    """

    def __init__(
        self, *, dim: int, num_parts: int, grid: tuple[int, int] | None, erasing: bool, neck: bool,
        neck_first: bool = False, pooling: str = "mean", erasing_bias: bool = True,
    ):  # fmt: skip
        super().__init__()
        self.num_parts = num_parts
        self.grid = grid
        self.pooling = pooling
        self.erasing = (
            PartErasing(dim=dim, num_parts=num_parts, bias=erasing_bias) if erasing else None
        )
        self.neck = build_neck(num_parts * dim, neck)
        self.neck_first = neck_first

    def forward(self, features: torch.Tensor) -> PartFeatures:
        """Pool, score and erase backbone ``features``: (B, 1 + T, C) or (B, C, H, W)."""
        class_token, tokens, rows = split_tokens(features, self.grid)
        parts = pool_stripes(tokens, rows, self.num_parts, self.pooling)  # (B, P, C)
        all_visible = torch.ones_like(parts[..., 0], dtype=torch.float32)
        visibility = all_visible if self.erasing is None else self.erasing(parts)
        erased = erase(parts, visibility)
        if not self.neck_first:
            return PartFeatures(class_token, visibility, erased, self.neck(erased.flatten(1)))
        normed = self.neck(parts.flatten(1)).view_as(parts)
        return PartFeatures(class_token, visibility, erased, erase(normed, visibility).flatten(1))
