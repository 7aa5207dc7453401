"""The first step of every model.

Shapes: B images, H, W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class ImageNormalization(nn.Module):
    """``(images - mean) / std`` by channel; what it is given stays as it is.

    Both are buffers that no checkpoint holds: the configuration does (``MODEL.PIXEL_MEAN``,
    ``MODEL.PIXEL_STD``).

    Args:
        mean: of images in 0-255, by channel.
        std: likewise.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return ``images`` (B, 3, H, W) as the backbone takes them."""
        return (images - self.mean) / self.std
