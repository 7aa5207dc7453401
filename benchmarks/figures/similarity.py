"""``similarity``: AONet's Eq. 8 between all queries and all gallery images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from comparison import Figure, figure, require_equal, time_alternately
from references.weighted_cosines import similarities

from aonet_plugin.head import similarity_vectors
from occluded_reid.evaluation import distance_matrix

NAMES = ("similarity",)


def measure(
    queries: int = 512, gallery: int = 2048, landmarks: int = 6, channels: int = 2048,
    rounds: int = 7,
) -> dict[str, Figure]:  # fmt: skip
    """Compare one matrix product with one cosine matrix per landmark.

    Both begin with what is kept of an image: its vector of Eq. 8, or its features of unit length
    and their visibility.
    """
    torch.manual_seed(0)
    shapes = [(images, landmarks) for images in (queries, gallery)]
    sides = [
        (F.normalize(torch.randn(*shape, channels), dim=2), torch.rand(shape)) for shape in shapes
    ]
    vectors = [similarity_vectors(features[None], visibility) for features, visibility in sides]

    def ours() -> torch.Tensor:
        return -torch.from_numpy(distance_matrix(vectors[0], vectors[1], "dot"))

    def reference() -> torch.Tensor:
        return similarities(sides[0], sides[1])

    require_equal("similarity", ours(), reference(), atol=1e-5)
    unit = f"s, {queries} x {gallery}, {landmarks} landmarks of {channels}"
    return {"similarity": figure(*time_alternately(ours, reference, rounds=rounds), unit)}
