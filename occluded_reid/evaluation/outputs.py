"""What a model returns in evaluation."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Embedding(NamedTuple):
    """One vector per image, and how visible each part of the person is.

    Attributes:
        features: (B, D), compared by ``TEST.METRIC``.
        visibility: (B, P) in [0, 1], 1 = visible; P is 0 where a model does not tell.
        stripes: whether the parts are P horizontal stripes of equal height, from the top; the
            visibility of other parts, such as landmarks, cannot be compared with a stripe's truth.
    """

    features: torch.Tensor
    visibility: torch.Tensor
    stripes: bool = True


def as_embedding(output: torch.Tensor | Embedding) -> Embedding:
    """Return a model's output by name; fast-reid's models return the features alone."""
    if isinstance(output, Embedding):
        return output
    return Embedding(output, output.new_zeros(len(output), 0))


def mean_embedding(first: Embedding, second: Embedding) -> Embedding:
    """Return the mean of two views of the same images."""
    features = (first.features + second.features) / 2
    return Embedding(features, (first.visibility + second.visibility) / 2, first.stripes)
