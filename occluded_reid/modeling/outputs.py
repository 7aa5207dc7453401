"""What a model returns in evaluation.

Shapes: B images in the batch, H, W height and width in pixels, D feature dimensions, P parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch


class Embedding(NamedTuple):
    """One vector per image, and how visible each part of the person is.

    Attributes:
        features: (B, D), compared by ``TEST.METRIC``: a tensor, or an array from :meth:`numpy`.
        visibility: (B, P) in [0, 1], 1 = visible; P is 0 where a model does not tell.
        stripes: whether the parts are P horizontal stripes of equal height, from the top; the
            visibility of other parts, such as landmarks, cannot be compared with a stripe's truth.
    """

    features: Any
    visibility: Any
    stripes: bool = True

    def numpy(self) -> Embedding:
        """Return the same with float32 arrays in place of tensors."""
        arrays = (each.float().cpu().numpy() for each in (self.features, self.visibility))
        return Embedding(*arrays, self.stripes)


def as_embedding(output: torch.Tensor | Embedding) -> Embedding:
    """Return a model's output by name; fast-reid's models return the features alone."""
    if isinstance(output, Embedding):
        return output
    return Embedding(output, output[:, :0])  # torch.export would fix the batch of len(output)


def embedding_of(
    forward: Callable[[Mapping[str, Any]], torch.Tensor | Embedding],
    batch: Mapping[str, Any],
    *,
    flip: bool,
) -> Embedding:
    """Return what a model says of a batch.

    Args:
        forward: the model, or its ``forward``.
        batch: ``images`` (B, 3, H, W) in 0-255, and what else the model reads; it stays as it is.
        flip: average what is said of an image and of its mirror image.
    """
    embedding = as_embedding(forward(batch))
    if not flip:
        return embedding
    mirrored = as_embedding(forward({**batch, "images": batch["images"].flip(-1)}))
    return Embedding(
        (embedding.features + mirrored.features) / 2,
        (embedding.visibility + mirrored.visibility) / 2,
        embedding.stripes,
    )
