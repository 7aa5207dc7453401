"""``similarity`` and ``similarity_bf16``: AONet's Eq. 8 between all queries and gallery images."""

from __future__ import annotations

import torch
from harness.comparison import Figure, make_figure, require_equal, time_alternately
from references.weighted_cosines import similarities

from aonet_plugin.head import similarity_vectors
from occluded_reid.evaluation.distances import distance_matrix

NAMES = ("similarity", "similarity_bf16")


def measure(
    queries: int = 512, gallery: int = 2048, landmarks: int = 6, channels: int = 2048,
    rounds: int = 7,
) -> dict[str, Figure]:  # fmt: skip
    """Compare one matrix product with one cosine matrix per landmark.

    Ours starts from the vectors of Eq. 8 in float32 or bfloat16, the reference from landmark
    features and their visibility.
    """
    torch.manual_seed(0)
    shapes = [(images, landmarks) for images in (queries, gallery)]
    sides = [(torch.randn(*shape, channels), torch.rand(shape)) for shape in shapes]
    vectors = [similarity_vectors(features[None], visibility) for features, visibility in sides]
    half_vectors = [each.bfloat16() for each in vectors]

    def ours() -> torch.Tensor:
        return -torch.from_numpy(distance_matrix(vectors[0], vectors[1], "dot"))

    def ours_bf16() -> torch.Tensor:
        return -torch.from_numpy(distance_matrix(half_vectors[0], half_vectors[1], "dot"))

    def reference() -> torch.Tensor:
        return similarities(sides[0], sides[1])

    require_equal("similarity", ours(), reference(), atol=1e-5)
    require_equal("similarity in bf16", ours_bf16(), reference(), atol=4e-3)
    size = f"{queries} x {gallery}, {landmarks} landmarks of {channels}"
    plain = time_alternately(ours, reference, rounds=rounds)
    half = time_alternately(ours_bf16, reference, rounds=rounds)
    return {
        "similarity": make_figure(plain, f"s, {size}"),
        "similarity_bf16": make_figure(half, f"s, {size}, ours in bf16"),
    }
