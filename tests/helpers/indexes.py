"""Small gallery indexes with random features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from gallery_search import Item, Store, create_store
from occluded_reid.evaluation.distances import distance_matrix

DIM, PARTS = 4, 2


def create(address: str | Path, metric: str = "dot", dim: int = DIM, parts: int = PARTS) -> Any:
    return create_store(
        address, metric=metric, dim=dim, num_parts=parts, fingerprint="0123abcd", weights="W.pth"
    )


def some_items(count: int, first: int = 0) -> list[Item]:
    """Items at three cameras, and some at none; a minute apart, and some without a time."""
    numbers = range(first, first + count)
    cameras, times = (None, "1", "2", "3"), (lambda n: 60.0 * n, lambda n: None)
    return [Item(f"{n}.jpg", cameras[n % 4], times[n % 5 == 0](n), str(n % 7)) for n in numbers]


def add(index: Store, features: np.ndarray, first: int = 0) -> list[int]:
    with index.writer() as writer:
        parts = index.info().num_parts
        return writer.add(
            some_items(len(features), first), features, np.full((len(features), parts), 0.5)
        )


def clustered(count: int, dim: int, seed: int = 0) -> np.ndarray:
    centres = np.random.default_rng(99).normal(size=(40, dim)) * 2
    random = np.random.default_rng(seed)
    return (centres[random.integers(40, size=count)] + random.normal(size=(count, dim))).astype("f")


def brute(query: np.ndarray, gallery: np.ndarray, metric: str) -> np.ndarray:
    """Similarities by the evaluation's distances."""
    distances = distance_matrix(torch.tensor(query), torch.tensor(gallery), metric)
    return 1 - distances if metric == "cosine" else -distances
