"""What a model returns in evaluation.

Shapes: B images in the batch, H, W height and width in pixels, P parts, C channels of a part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch


class Embedding(NamedTuple):
    """A vector and the visibility of each part of a person.

    How images are compared says :mod:`occluded_reid.modeling.similarity`.

    >>> Embedding(torch.randn(2, 4, 128), torch.ones(2, 4)).numpy().features.shape
    (2, 4, 128)

    Attributes:
        features: (B, P, C), a tensor, or an array from :meth:`numpy`; (B, 1, C) of a model that
            compares one vector per image, whatever parts it scores.
        visibility: (B, P) in [0, 1], 1 = visible; (B, 0) of a model without visibility.
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

    def tensors(self) -> Embedding:
        """Return the same with float32 tensors in place of arrays."""
        features, visibility = (
            torch.from_numpy(np.require(each, np.float32, ["C", "W"])) for each in self[:2]
        )
        return Embedding(features, visibility, self.stripes)


def as_embedding(output: torch.Tensor | Embedding) -> Embedding:
    """Return a model's output as an Embedding with features (B, P, C).

    Features (B, C) are one vector per image; fast-reid's models return them alone.
    """
    if not isinstance(output, Embedding):  # torch.export would fix the batch of len(output)
        output = Embedding(output, output[:, :0])
    if output.features.dim() == 2:
        return output._replace(features=output.features[:, None])
    return output


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
