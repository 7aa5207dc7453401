"""Small gallery indexes with random features."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gallery_search import GalleryIndex, Item

DIM, PARTS = 4, 2


def create(folder: Path, metric: str = "dot", dim: int = DIM, parts: int = PARTS) -> GalleryIndex:
    return GalleryIndex.create(
        folder, metric=metric, dim=dim, num_parts=parts, fingerprint="0123abcd", weights="W.pth"
    )


def some_items(count: int, first: int = 0) -> list[Item]:
    """Items at three cameras, and some at none; a minute apart, and some without a time."""
    numbers = range(first, first + count)
    cameras, times = (None, "1", "2", "3"), (lambda n: 60.0 * n, lambda n: None)
    return [Item(f"{n}.jpg", cameras[n % 4], times[n % 5 == 0](n), str(n % 7)) for n in numbers]


def add(index: GalleryIndex, features: np.ndarray, first: int = 0) -> list[int]:
    with index.writer() as writer:
        parts = index.info().num_parts
        return writer.add(
            some_items(len(features), first), features, np.full((len(features), parts), 0.5)
        )


def clustered(count: int, dim: int, seed: int = 0) -> np.ndarray:
    centres = np.random.default_rng(99).normal(size=(40, dim)) * 2
    random = np.random.default_rng(seed)
    return (centres[random.integers(40, size=count)] + random.normal(size=(count, dim))).astype("f")
