"""Layers and tensor functions that FED and AONet share.

Shapes: B images in the batch, C channels, H, W feature-map height and width, T = H * W patch tokens
in raster order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import torch
from torch import nn

P = ParamSpec("P")
R = TypeVar("R")


class ImageNormalization(nn.Module):
    """``(images - mean) / std`` per channel of images in 0-255, never in place.

    Both are buffers outside the state dict: they come from ``MODEL.PIXEL_MEAN`` and
    ``MODEL.PIXEL_STD``.

    >>> normalize = ImageNormalization(mean=[127.5] * 3, std=[127.5] * 3)
    >>> normalize(torch.full((1, 3, 1, 1), 255.0)).flatten().tolist()
    [1.0, 1.0, 1.0]
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalize ``images`` (B, 3, height, width) for the backbone."""
        return (images - self.mean) / self.std


def build_neck(dim: int, enabled: bool) -> nn.Module:
    """Build the BNNeck before the classifiers: batch normalization of (B, dim) with a frozen bias.

    One BatchNorm1d over flattened parts equals one per part, since it normalizes each channel
    independently. Without ``enabled`` it is the identity.

    >>> build_neck(8, enabled=True)(torch.randn(4, 8)).shape
    torch.Size([4, 8])
    """
    if not enabled:
        return nn.Identity()
    neck = nn.BatchNorm1d(dim)
    neck.bias.requires_grad_(False)
    return neck


def split_tokens(
    features: torch.Tensor, grid: tuple[int, int] | None
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Split backbone features into a global feature and patch tokens.

    Args:
        features: tokens (B, 1 + T, C) of a transformer, class token first; or the feature map
            (B, C, H, W) of a convolutional network, whose mean replaces the class token.
        grid: rows and columns of the patches; None for a feature map.

    Returns:
        The global feature (B, C), the patch tokens (B, T, C), and their number of rows H.

    >>> feature, tokens, rows = split_tokens(torch.randn(2, 1 + 8, 16), grid=(4, 2))
    >>> feature.shape, tokens.shape, rows
    (torch.Size([2, 16]), torch.Size([2, 8, 16]), 4)
    """
    if features.dim() == 4:
        return features.mean(dim=(2, 3)), features.flatten(2).transpose(1, 2), features.shape[2]
    return features[:, 0], features[:, 1:], _check_grid(grid)[0]


def to_feature_map(features: torch.Tensor, grid: tuple[int, int] | None) -> torch.Tensor:
    """Return backbone features as a feature map (B, C, H, W), without the class token.

    See :func:`split_tokens` for the arguments.

    >>> to_feature_map(torch.randn(2, 1 + 8, 16), grid=(4, 2)).shape
    torch.Size([2, 16, 4, 2])
    """
    if features.dim() == 4:
        return features
    return features[:, 1:].transpose(1, 2).unflatten(2, _check_grid(grid))


def _check_grid(grid: tuple[int, int] | None) -> tuple[int, int]:
    if grid is None:
        raise ValueError("tokens need the backbone's attribute grid (rows, columns)")
    return grid


def to_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Cast half precision to float32; float32 and float64 stay as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def run_in_float32(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function of tensors to run outside autocast, in float32 or wider.

    Positional floating-point tensors are cast by :func:`to_float32`.

    >>> half = torch.ones(2, dtype=torch.bfloat16)
    >>> run_in_float32(torch.dot)(half, half).dtype
    torch.float32
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        devices = [arg.device.type for arg in args if isinstance(arg, torch.Tensor)]
        cast = [
            to_float32(arg) if isinstance(arg, torch.Tensor) and arg.is_floating_point() else arg
            for arg in args
        ]
        with torch.autocast(devices[0], enabled=False):
            return function(*cast, **kwargs)  # type: ignore[arg-type]

    return run
