"""From backbone features to one vector per image: all that inference needs, and nothing more.

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
    """What the head makes of a batch.

    Attributes:
        class_token: (B, C), the feature of the whole image.
        visibility: (B, P), float32 in [0, 1], 1 = visible.
        erased: (B, P, C), part features times visibility, no neck.
        embedding: (B, P * C), f' of Eq. 1 flattened, the neck before the erasing or after it.
    """

    class_token: torch.Tensor
    visibility: torch.Tensor
    erased: torch.Tensor
    embedding: torch.Tensor


def pool_stripes(tokens: torch.Tensor, rows: int, num_parts: int) -> torch.Tensor:
    """Return the mean token (B, P, C) of each of P equal horizontal stripes (Sec. 3).

    Args:
        tokens: (B, T, C) in raster order, so that a stripe is a run of T / P tokens.
        rows: rows of the raster.
        num_parts: P.

    Raises:
        UserError: the rows cannot be shared equally by the parts.
    """
    if rows % num_parts:
        raise UserError(
            f"{rows} rows of features cannot be cut into {num_parts} equal stripes: change "
            "INPUT.SIZE_TRAIN and INPUT.SIZE_TEST, MODEL.BACKBONE.STRIDE_SIZE, or "
            "MODEL.FED.NUM_PARTS"
        )
    return tokens.unflatten(1, (num_parts, -1)).mean(dim=2)


class PartErasing(nn.Module):
    """The occlusion erasing module: a sub-module of its own scores each part (Eq. 1).

    Args:
        dim: C.
        num_parts: P.
    """

    def __init__(self, *, dim: int, num_parts: int):
        super().__init__()
        self.scorers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(dim, dim // 4),  # W_cp: keeps the semantics, drops what is personal
                nn.LayerNorm(dim // 4),
                nn.Linear(dim // 4, 1),  # W_rg
            )
            for _ in range(num_parts)
        )

    def forward(self, parts: torch.Tensor) -> torch.Tensor:
        """Return the visibility (B, P) in [0, 1] of ``parts`` (B, P, C)."""
        scores = [scorer(parts[:, part]) for part, scorer in enumerate(self.scorers)]
        return to_float32(torch.cat(scores, dim=1).sigmoid())


def erase(parts: torch.Tensor, visibility: torch.Tensor) -> torch.Tensor:
    """Return the parts (B, P, C) times their visibility (B, P): f' of Eq. 1."""
    return visibility[..., None] * parts


class FEDHead(nn.Module):
    """Part pooling, erasing, neck (Sec. 3, Eq. 1).

    Args:
        dim: C.
        num_parts: P.
        grid: rows and columns of the backbone's patches; None where it gives feature maps.
        erasing: have the occlusion erasing module; without it every part is visible.
        neck: have the batch normalisation.
        neck_first: normalise the parts before they are erased, not after.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_parts: int,
        grid: tuple[int, int] | None,
        erasing: bool,
        neck: bool,
        neck_first: bool = False,
    ):
        super().__init__()
        self.num_parts = num_parts
        self.grid = grid
        self.erasing = PartErasing(dim=dim, num_parts=num_parts) if erasing else None
        self.neck = build_neck(num_parts * dim, neck)
        self.neck_first = neck_first

    def forward(self, features: torch.Tensor) -> PartFeatures:
        """Read the backbone's ``features``: (B, 1 + T, C) or (B, C, H, W)."""
        class_token, tokens, rows = split_tokens(features, self.grid)
        parts = pool_stripes(tokens, rows, self.num_parts)  # (B, P, C)
        if self.erasing is not None:
            visibility = self.erasing(parts)
        else:
            visibility = torch.ones_like(parts[..., 0], dtype=torch.float32)
        erased = erase(parts, visibility)
        if self.neck_first:
            normed = self.neck(parts.flatten(1)).view_as(parts)
            embedding = erase(normed, visibility).flatten(1)
        else:
            embedding = self.neck(erased.flatten(1))
        return PartFeatures(class_token, visibility, erased, embedding)
