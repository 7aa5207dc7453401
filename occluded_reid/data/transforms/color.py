"""Changes of brightness, contrast and saturation, of one picture or of a batch alike.

All steps are elementwise, in numbers that hold them exactly, so that a picture comes out the same
whether it is changed alone or in a batch, on a CPU or on a GPU.

Shapes: pictures are (..., 3, H, W), whole numbers in 0-255.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

BRIGHTNESS, CONTRAST, SATURATION = range(3)


def change_colours(picture: torch.Tensor, factors: Sequence[float]) -> torch.Tensor:
    """Change brightness, contrast and saturation by the factors b, c and s, in this order.

    The three changes are one affine map of RGB: brightness ``x -> b x``, contrast
    ``x -> c x + (1 - c) mean grey``, saturation ``x -> s x + (1 - s) grey(x)``.

    Args:
        picture: (3, H, W) uint8.
        factors: b, c and s; 1 changes nothing.

    Returns:
        (3, H, W) float32, whole numbers in 0-255.
    """
    sums = picture.sum(dim=(-2, -1), dtype=torch.int32).tolist()
    return _mapped(picture, *_affine(sums, factors, picture[0].numel()))


def change_colours_of_batch(
    pictures: torch.Tensor, factors: torch.Tensor, area: torch.Tensor
) -> torch.Tensor:
    """Do what :func:`change_colours` does to the pictures of a batch.

    Args:
        pictures: (B, 3, H, W) float64, whole numbers in 0-255.
        factors: (B, 3) float64.
        area: (B,) pixels of the picture; around it are zeros, which do not count.

    Returns:
        (B, 3, H, W) float32; around the picture is anything.
    """
    sums = pictures.sum(dim=(-2, -1)).unbind(-1)
    numbers = _affine(sums, factors.unbind(-1), area)
    return _mapped(pictures, *(each.float()[:, None, None] for each in numbers))


def _affine(sums: Sequence[Any], factors: Sequence[Any], area: Any) -> tuple[Any, Any, Any]:
    """Return p, q and r of the map ``x -> p x + q grey(x) + r``.

    Args:
        sums: of red, green and blue; numbers or tensors of a batch, as all that follows.
        factors: b, c and s.
        area: pixels.
    """
    bright, contrast, saturation = factors
    shift = (1 - contrast) * bright * (_grey(*sums) / area)
    return saturation * bright * contrast, (1 - saturation) * bright * contrast, shift


def _mapped(pictures: torch.Tensor, scale: Any, tint: Any, shift: Any) -> torch.Tensor:
    planes = pictures.to(torch.float32, copy=True)
    offset = (tint * _grey(*planes.unbind(-3)) + shift).unsqueeze(-3)
    if torch.is_tensor(scale):
        scale = scale.unsqueeze(-3)
    return planes.mul_(scale).add_(offset).clamp_(0, 255).round_()


def _grey(red: Any, green: Any, blue: Any) -> Any:
    return 0.299 * red + 0.587 * green + 0.114 * blue


def enhance(pictures: torch.Tensor, order: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Change brightness, contrast and saturation as Pillow's ``ImageEnhance`` does, bit for bit.

    Each is a mixture with black, with the mean grey or with the grey picture; after each, pixels
    are cut to whole numbers in 0-255.

    Args:
        pictures: (B, 3, H, W) uint8.
        order: (B, 3), a permutation of 0 (brightness), 1 (contrast) and 2 (saturation).
        factors: (B, 3) of the three, not in that order; 1 changes nothing.

    Returns:
        (B, 3, H, W) uint8.
    """
    values = pictures.int()
    for kind in order.unbind(1):
        grey = _pillow_grey(values)
        mean = (grey.sum(dim=(2, 3), keepdim=True) / grey[0].numel() + 0.5).floor().int()
        kind = kind[:, None, None, None]
        other = torch.where(kind == CONTRAST, mean, grey * (kind == SATURATION))
        factor = factors.float().gather(1, kind[:, :, 0, 0])[:, :, None, None]
        values = (other + factor * (values - other)).clamp(0, 255).int()
    return values.to(torch.uint8)


def _pillow_grey(values: torch.Tensor) -> torch.Tensor:
    """Return L (B, 1, H, W) of RGB (B, 3, H, W), whole numbers, as Pillow rounds it."""
    red, green, blue = values.split(1, dim=1)
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
