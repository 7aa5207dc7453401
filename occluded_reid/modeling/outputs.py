"""What a model returns in evaluation.

Shapes: B images in the batch, H, W height and width in pixels, D feature dimensions, P parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch


class Embedding(NamedTuple):
    """One vector per image, and the visibility of each part of the person.

    >>> Embedding(torch.randn(2, 512), torch.ones(2, 4)).numpy().features.shape
    (2, 512)

    Attributes:
        features: (B, D), compared by ``TEST.METRIC``: a tensor, or an array from :meth:`numpy`.
        visibility: (B, P) in [0, 1], 1 = visible; P is 0 for a model without visibility.
        stripes: whether the parts are P equal horizontal stripes, from the top. The visibility of
            other parts, such as landmarks, cannot be compared with a stripe's truth.
    """

    features: Any
    visibility: Any
    stripes: bool = True

    def numpy(self) -> Embedding:
        """Return the same with float32 arrays in place of tensors."""
        features, visibility = (each.float().cpu().numpy() for each in self[:2])
        return Embedding(features, visibility, self.stripes)


def as_embedding(output: torch.Tensor | Embedding) -> Embedding:
    """Return a model's output as an Embedding; fast-reid's models return the features alone."""
    if isinstance(output, Embedding):
        return output
    return Embedding(output, output[:, :0])  # torch.export would fix the batch of len(output)


def embed_batch(
    forward: Callable[[Mapping[str, Any]], torch.Tensor | Embedding],
    batch: Mapping[str, Any],
    *,
    flip: bool,
) -> Embedding:
    """Run a model, or its ``forward``, on a batch, which is not changed.

    Args:
        forward: from a batch to the model's output.
        batch: ``images`` (B, 3, H, W) in 0-255, and whatever else the model reads.
        flip: average the outputs for an image and for its mirror image.
    """
    embedding = as_embedding(forward(batch))
    if not flip:
        return embedding
    mirrored = as_embedding(forward({**batch, "images": batch["images"].flip(-1)}))
    features = (embedding.features + mirrored.features) / 2
    visibility = (embedding.visibility + mirrored.visibility) / 2
    return Embedding(features, visibility, embedding.stripes)
