"""From features to distances and ranks."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fastreid.evaluation.rank import IS_CYTHON_AVAI, evaluate_rank
from fastreid.evaluation.rerank import re_ranking
from harness.comparison import Figure, Work, make_figure, require_equal, time_alternately

from occluded_reid.evaluation.distances import FeatureDistances, distance_matrix
from occluded_reid.evaluation.ranking import rank_queries
from occluded_reid.evaluation.reranking import RerankedDistances
from occluded_reid.modeling.outputs import Embedding
from occluded_reid.modeling.similarity import make_rows

# fast-reid's Python code is about twenty times slower, so it gets a tenth of the queries
KIND, QUERIES = ("Cython", 2210) if IS_CYTHON_AVAI else ("Python", 221)


def measure_similarity(
    queries: int = 512, gallery: int = 2048, landmarks: int = 6, channels: int = 2048,
    rounds: int = 7,
) -> dict[str, Figure]:  # fmt: skip
    """Compare the similarities of parts with one cosine matrix per landmark, weighted.

    Ours starts from rows in float32 or bfloat16, the reference from landmark features.
    """
    torch.manual_seed(0)
    shapes = [(images, landmarks) for images in (queries, gallery)]
    sides = [(torch.randn(*shape, channels), torch.rand(shape)) for shape in shapes]
    visibility = sides[0][1], sides[1][1]
    figures = {}
    for name, metric, suffix, dtype, atol in (
        ("similarity", "dot", "", torch.float32, 1e-5),
        ("similarity_bf16", "dot", ", ours in bf16", torch.bfloat16, 4e-3),
        ("similarity_shared", "shared", ", shared", torch.float32, 1e-5),
        ("similarity_query", "query", ", query", torch.float32, 1e-5),
    ):
        one, other = (make_rows(Embedding(*side), metric).to(dtype) for side in sides)
        ours = partial(distance_matrix, one, other, metric, visibility)
        reference = partial(similarities, sides[0], sides[1], metric)
        require_equal(name, -ours(), reference(), atol=atol)
        times = time_alternately(ours, reference, rounds=rounds)
        unit = f"s, {queries} x {gallery}, {landmarks} landmarks of {channels}{suffix}"
        figures[name] = make_figure(times, unit)
    return figures


def similarities(
    query: tuple[torch.Tensor, torch.Tensor], gallery: tuple[torch.Tensor, torch.Tensor],
    metric: str,
) -> torch.Tensor:  # fmt: skip
    """Return the similarity of ``metric``, (Q, G); ``dot`` is Eq. 8.

    Each side has features (N, P, C) and visibility (N, P); cosines are computed as in fast-reid.
    """
    (features, visibility), (other_features, other_visibility) = query, gallery
    if metric == "query":
        other_visibility = torch.ones_like(other_visibility)
    total = torch.zeros(len(features), len(other_features))
    weights = torch.zeros_like(total)
    for landmark in range(features.shape[1]):
        unit = F.normalize(features[:, landmark], dim=1)
        cosines = unit @ F.normalize(other_features[:, landmark], dim=1).T
        weight = visibility[:, landmark, None] * other_visibility[None, :, landmark]
        total += weight * cosines
        weights += weight if metric == "shared" else 1
    return total / weights


def measure_ranking(
    queries: int = QUERIES, gallery: int = 17661, rounds: int = 3
) -> dict[str, Figure]:
    """Compare time, and peak memory beside the distances, of ranking with fast-reid's.

    The random distances have no ties in a row; AP and INP of each query and the CMC curve agree.
    """
    rng = np.random.default_rng(0)
    order = np.tile(np.arange(gallery, dtype=np.float32), (queries, 1))
    distances = rng.permuted(order, axis=1, out=order)
    distances /= gallery
    labels = make_labels(queries, gallery)
    works = (
        lambda: rank_queries(distances, *labels),
        lambda: evaluate_rank(distances, *labels, max_rank=min(50, gallery)),
    )
    ranks, (cmc, precision, penalty) = works[0](), works[1]()
    require_equal("average precision", ranks.average_precision, precision, atol=1e-6)
    require_equal("inverse negative penalty", ranks.inverse_negative_penalty, penalty, atol=1e-6)
    own = [ranks.rank_k(rank + 1).mean() for rank in range(len(cmc))]
    require_equal("CMC curve", own, cmc, atol=1e-6)
    size = f"{queries} x {gallery}, against fast-reid's {KIND}"
    memory = [[measure_peak(work) / 1e6] for work in works]
    return {
        "ranking": make_figure(time_alternately(*works, rounds=rounds), f"s, {size}"),
        "ranking_memory": make_figure(memory, f"MB, {size}"),
    }


def make_labels(queries: int, gallery: int) -> list[np.ndarray]:
    """Return identities, about 16 images each, then cameras, of queries and gallery."""
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, high, size)
        for high in (max(2, gallery // 16), 8)
        for size in (queries, gallery)
    ]


def measure_peak(work: Work) -> int:
    """Return the peak memory of ``work`` in bytes, as Python and NumPy allocate it."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def measure_gpu_evaluation(
    queries: int = QUERIES, gallery: int = 17661, channels: int = 3072, device: str = "cuda",
    rounds: int = 2,
) -> dict[str, Figure]:  # fmt: skip
    """Compare with all cosine distances at once, moved to the host for fast-reid's ranking."""
    features = make_features(queries + gallery, channels).to(device)
    query, images = features.split((queries, gallery))
    labels = make_labels(queries, gallery)

    def ours() -> Any:
        return rank_queries(FeatureDistances(query, images, "cosine", device), *labels)

    def reference() -> Any:
        distances = 1 - F.normalize(query, dim=1) @ F.normalize(images, dim=1).T
        return evaluate_rank(distances.cpu().numpy(), *labels, max_rank=min(50, gallery))

    precision = ours().average_precision.mean()
    require_equal("mAP", precision, np.mean(reference()[1]), atol=1e-3)
    unit = f"s, {queries} x {gallery} of {channels}, against fast-reid's {KIND}"
    times = time_alternately(ours, reference, rounds=rounds, device=device)
    return {"gpu_evaluation": make_figure(times, unit)}


def measure_reranking(
    queries: int = 200, gallery: int = 1600, channels: int = 256, k1: int = 20, k2: int = 6,
    rounds: int = 3,
) -> dict[str, Figure]:  # fmt: skip
    """Compare k-reciprocal re-ranking, distances included, with fast-reid's loop."""
    ours, reference = build_reranking(queries, gallery, channels, k1, k2)
    require_equal("re-ranked distances", ours(), reference(), atol=1e-4)
    unit = f"s, {queries} x {gallery} of {channels}, k1 {k1}, k2 {k2}"
    return {"rerank": make_figure(time_alternately(ours, reference, rounds=rounds), unit)}


def build_reranking(
    queries: int, gallery: int, channels: int, k1: int, k2: int
) -> tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]:
    """Return ours and fast-reid's functions from the same features to (Q, G) distances.

    fast-reid's needs dense N x N matrices.
    """
    features = make_features(queries + gallery, channels)

    def ours() -> np.ndarray:
        return RerankedDistances(features, queries, "euclidean", k1=k1, k2=k2, weight=0.3)[:, :]

    def reference() -> np.ndarray:
        distances = distance_matrix(features, features, "euclidean")
        np.sqrt(np.maximum(distances, 0, out=distances), out=distances)
        parts = distances[:queries, queries:], distances[:queries, :queries]
        return re_ranking(*parts, distances[queries:, queries:], k1, k2, lambda_value=0.3)

    return ours, reference


def make_features(images: int, channels: int) -> torch.Tensor:
    """Return random features (images, channels) in clusters of about twelve."""
    rng = torch.Generator().manual_seed(0)
    centers = torch.randn(max(1, images // 12), channels, generator=rng)
    labels = torch.randint(len(centers), (images,), generator=rng)
    return centers[labels] + 0.7 * torch.randn(images, channels, generator=rng)
