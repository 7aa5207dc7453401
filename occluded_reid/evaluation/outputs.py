"""What a model returns in evaluation."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Embedding(NamedTuple):
    """One vector per image, and how visible each part of the person is.

    Attributes:
        features: (B, D), compared by ``TEST.METRIC``.
        visibility: (B, P) in [0, 1], 1 = visible; P is 0 where a model does not tell.
    """

    features: torch.Tensor
    visibility: torch.Tensor


def as_embedding(output: torch.Tensor | Embedding) -> Embedding:
    """Return a model's output by name; fast-reid's models return the features alone."""
    if isinstance(output, Embedding):
        return output
    return Embedding(output, output.new_zeros(len(output), 0))


def mean_embedding(first: Embedding, second: Embedding) -> Embedding:
    """Return the mean of two views of the same images."""
    return Embedding(*((one + other) / 2 for one, other in zip(first, second, strict=True)))
