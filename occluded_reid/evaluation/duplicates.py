"""Queries whose own picture stands in the gallery too, as 1,870 of Occluded-Duke's do.

Market-1501's rule drops them from scoring: same identity, same camera. But in re-ranking and query
expansion a query would find itself as its nearest neighbour and vote twice. There the two are
counted as the one image that they are.

Shapes: Q queries, G gallery images, N = Q + G images.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import torch


def own_copies(
    paths: np.ndarray,
    identities: np.ndarray,
    cameras: np.ndarray,
    queries: int,
    known: Mapping[str, str] | None = None,
) -> np.ndarray:
    """Return where in the gallery each query's own copy stands: (Q,), -1 where there is none.

    Args:
        paths: (N,), queries first; likewise identities and cameras.
        identities: (N,).
        cameras: (N,).
        queries: Q.
        known: the copy's path by the query's path, where the data set tells; an empty mapping says
            that there are none. None: a copy has the query's file name, identity and camera.
    """
    if known is not None:
        place = {path: number for number, path in enumerate(paths[queries:])}
        return np.array([place.get(known.get(path), -1) for path in paths[:queries]], np.int64)
    names = (os.path.basename(path) for path in paths)
    keys = list(zip(names, identities.tolist(), cameras.tolist(), strict=True))
    place = {key: number for number, key in enumerate(keys[queries:])}
    return np.array([place.get(key, -1) for key in keys[:queries]], np.int64)


def image_of_each(copies: np.ndarray, gallery: int) -> torch.Tensor:
    """Return which image each of N is, as a position among the N: a copy is its query's image."""
    queries = len(copies)
    images = torch.arange(queries + gallery)
    own = torch.from_numpy(copies)
    images[queries + own[own >= 0]] = torch.arange(queries)[own >= 0]
    return images


def hidden_copies(images: torch.Tensor) -> torch.Tensor:
    """Return the positions of those of N images that are another one's copy, ascending."""
    return torch.nonzero(images != torch.arange(len(images))).flatten()
