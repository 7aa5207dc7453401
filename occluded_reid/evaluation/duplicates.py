"""Queries whose own image is in the gallery too, as 1,870 of Occluded-Duke's are.

Market-1501's rules remove them from the ranking: same identity, same camera. In re-ranking and
query expansion, however, such a query would be its own nearest neighbor and vote twice. There, both
count as one image.

Shapes: Q queries, G gallery images, N = Q + G images.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import torch


def find_duplicates(
    paths: np.ndarray, identities: np.ndarray, cameras: np.ndarray, queries: int,
    declared: Mapping[str, str] | None = None,
) -> np.ndarray:  # fmt: skip
    """Return the gallery index of each query's duplicate: (Q,), -1 where there is none.

    ``paths``, ``identities`` and ``cameras`` are (N,), queries first. ``declared`` is the
    duplicate's path by the query's path, if the data set has them; it may be empty. None: a
    duplicate has the query's file name, identity and camera.
    """
    if declared is not None:
        index = {path: number for number, path in enumerate(paths[queries:])}
        return np.array([index.get(declared.get(path), -1) for path in paths[:queries]], np.int64)
    names = (os.path.basename(path) for path in paths)
    keys = list(zip(names, identities.tolist(), cameras.tolist(), strict=True))
    index = {key: number for number, key in enumerate(keys[queries:])}
    return np.array([index.get(key, -1) for key in keys[:queries]], np.int64)


def assign_images(duplicates: np.ndarray, gallery: int) -> torch.Tensor:
    """Return (N,): the index of each entry's image, for a duplicate (Q,) that of its query."""
    queries = len(duplicates)
    images = torch.arange(queries + gallery)
    columns = torch.from_numpy(duplicates)
    images[queries + columns[columns >= 0]] = torch.arange(queries)[columns >= 0]
    return images


def list_redundant(images: torch.Tensor) -> torch.Tensor:
    """Return the indices of the entries that duplicate another one, ascending."""
    return torch.nonzero(images != torch.arange(len(images))).flatten()
