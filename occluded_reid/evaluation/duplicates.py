"""Images that are query and gallery image at once, as 1,870 of Occluded-Duke's are.

They are found by their pixels, whatever their names, identities and cameras. Ranking never scores a
query's own image. In re-ranking and query expansion, such a query would be its own nearest neighbor
and vote twice; there, both count as one image.

Shapes: Q queries, G gallery images, N = Q + G images.
"""

from __future__ import annotations

import numpy as np
import torch


def assign_images(digests: np.ndarray, queries: int) -> torch.Tensor:
    """Return (N,): the index of each entry's image, the first query with its digest or itself.

    >>> assign_images(np.array([7, 8, 8, 7, 9, 9]), queries=2)
    tensor([0, 1, 1, 0, 4, 5])
    """
    first: dict[int, int] = {}
    for index, digest in enumerate(digests[:queries].tolist()):
        first.setdefault(digest, index)
    return torch.tensor([first.get(d, index) for index, d in enumerate(digests.tolist())])


def find_copies(images: torch.Tensor, queries: int) -> dict[int, np.ndarray]:
    """Return the gallery indices of a query's own image, by query; most queries have none.

    ``images`` (N,) are those of :func:`assign_images`.

    >>> find_copies(torch.tensor([0, 1, 1, 0, 4, 5]), queries=2)
    {0: array([1]), 1: array([0])}
    """
    gallery = images[queries:].numpy()
    found: dict[int, list[int]] = {}
    for index in np.flatnonzero(gallery < queries).tolist():
        found.setdefault(int(gallery[index]), []).append(index)
    own = enumerate(images[:queries].tolist())
    return {query: np.array(found[image]) for query, image in own if image in found}


def list_redundant(images: torch.Tensor) -> torch.Tensor:
    """Return the indices of the entries that duplicate another one, ascending."""
    return torch.nonzero(images != torch.arange(len(images))).flatten()
