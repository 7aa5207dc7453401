"""Brightness, contrast and saturation of uint8 images (3, H, W)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

BRIGHTNESS, CONTRAST, SATURATION = range(3)


def adjust_color(image: torch.Tensor, factors: Sequence[float]) -> torch.Tensor:
    """Adjust brightness, contrast and saturation by the factors b, c and s, in this order.

    The three adjustments are one affine map of RGB: brightness ``x -> b x``, contrast
    ``x -> c x + (1 - c) mean gray``, saturation ``x -> s x + (1 - s) gray(x)``. Pixels are clipped
    once, after the last of them. The image is (3, H, W) uint8, the result float32 in whole numbers.
    """
    brightness, contrast, saturation = factors
    sums = image.sum(dim=(-2, -1), dtype=torch.int32).tolist()
    offset = (1 - contrast) * brightness * (_gray(*sums) / image[0].numel())
    scale = saturation * brightness * contrast
    tint = (1 - saturation) * brightness * contrast
    values = image.float()
    added = tint * _gray(*values) + offset
    return values.mul_(scale).add_(added).clamp_(0, 255).round_()


def _gray(red: torch.Tensor, green: torch.Tensor, blue: torch.Tensor) -> torch.Tensor:
    return 0.299 * red + 0.587 * green + 0.114 * blue


def enhance(image: torch.Tensor, order: Sequence[int], factors: Sequence[float]) -> torch.Tensor:
    """Adjust brightness, contrast and saturation as Pillow's ``ImageEnhance`` does, bit for bit.

    Each adjustment blends the image with black, with its mean gray or with its gray version, and
    truncates the pixels to whole numbers in 0-255. Image and result are (3, H, W) uint8. ``order``
    is a permutation of 0 (brightness), 1 (contrast) and 2 (saturation), the order of ``factors``.
    """
    values = image.int()
    for kind in order:
        red, green, blue = values
        gray = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16  # Pillow's mode L
        other: torch.Tensor | int = 0
        if kind == CONTRAST:
            other = int(gray.sum().item() / gray.numel() + 0.5)
        elif kind == SATURATION:
            other = gray
        values = (other + factors[kind] * (values - other)).clamp(0, 255).int()
    return values.to(torch.uint8)
