"""PyTorch's bilinear resize of uint8 pictures with antialias, for a whole batch as two products.

:func:`torch.nn.functional.interpolate` takes pictures of one size to one size. Here each picture of
a batch has a window and a target of its own. The result is the same to the bit: the weights are
rounded to the same whole numbers, and sums of whole numbers are exact in float64.

Shapes: B pictures of S x S, padded on the right and below; targets lie on a canvas of H x W.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

_LEAST_OVERFLOW = 1 << 15  # weights are kept in 16 bits with a sign
_MOST_BITS = 22


class Weights(NamedTuple):
    """A resize along one axis.

    Attributes:
        values: (B, canvas, S), whole numbers in float64; rows outside of the target are 0.
        one: (B,) the whole number that stands for 1.
    """

    values: torch.Tensor
    one: torch.Tensor


def resize_weights(
    window: torch.Tensor,
    target: torch.Tensor,
    canvas: int,
    side: int,
    mirrored: torch.Tensor | None = None,
) -> Weights:
    """Return the weights that take a window of a picture's axis to a target on the canvas.

    Args:
        window: (B, 2) first pixel and length of what is read.
        target: (B, 2) likewise of what is written; a length of 0 writes nothing.
        canvas: length of the axis that is written.
        side: S, of the axis that is read.
        mirrored: (B,) bool, where the target is filled from its end.
    """
    start, length = target.unbind(1)
    place = torch.arange(canvas, device=window.device) - start[:, None]
    written = (place >= 0) & (place < length[:, None])
    if mirrored is not None:
        place = torch.where(mirrored[:, None], length[:, None] - 1 - place, place)
    scale = (window[:, 1].double() / length.clamp(min=1))[:, None]
    support = scale.clamp(min=1)
    centre = scale * (place + 0.5)
    low = (centre - support + 0.5).trunc().clamp(min=0)[:, :, None]
    high = torch.minimum((centre + support + 0.5).trunc(), window[:, 1:])[:, :, None]
    tap = (torch.arange(side, device=window.device) - window[:, :1])[:, None, :]
    distance = (tap - centre[:, :, None] + 0.5) * (1 / support)[:, :, None]
    values = (1 - distance.abs()).clamp(min=0)
    values = values * ((tap >= low) & (tap < high) & written[:, :, None])
    values = values / values.sum(dim=2, keepdim=True).clamp(min=1e-9)
    one = _one(values.amax(dim=(1, 2)))
    return Weights((values * one[:, None, None] + 0.5).floor(), one)


def _one(largest: torch.Tensor) -> torch.Tensor:
    """Return the power of two (B,) with which the largest weights just fit into their bits."""
    powers = 2.0 ** torch.arange(_MOST_BITS, device=largest.device, dtype=torch.float64)
    fits = (2 * powers * largest[:, None] + 0.5).floor() < _LEAST_OVERFLOW
    return 2.0 ** fits.sum(dim=1).double()


def resize_onto(pictures: torch.Tensor, down: Weights, across: Weights) -> torch.Tensor:
    """Resize (B, 3, S, S) float64 onto (B, 3, H, W) float64, whole numbers in 0-255."""
    narrow = _rounded(pictures @ across.values[:, None].transpose(2, 3), across.one)
    return _rounded(down.values[:, None] @ narrow, down.one)


def _rounded(sums: torch.Tensor, one: torch.Tensor) -> torch.Tensor:
    one = one[:, None, None, None]
    return ((sums + one / 2) / one).floor().clamp(0, 255)
