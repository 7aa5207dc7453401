"""The nearest neighbors of each image.

Shapes: N images.
"""

from __future__ import annotations

import torch

from occluded_reid.evaluation.distances import FeatureDistances, choose_tile_rows, split_range


@torch.no_grad()
def find_neighbors(
    distances: FeatureDistances, count: int, redundant: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ``count`` nearest neighbors of each image, and the range of its distances.

    An image is its own first neighbor, also under ``dot``, where an image with a larger norm may be
    nearer to it than itself. Ties are broken arbitrarily.

    Args:
        distances: (N, N), of the images to themselves.
        count: at most N minus the redundant images.
        redundant: indices of images that are no neighbors and in no range.

    Returns:
        (N, count) indices, the nearest first; (N, 2) smallest and largest distance.
    """
    images = distances.shape[0]
    neighbors = torch.empty(images, count, dtype=torch.int64, device=distances.device)
    ranges = torch.empty(images, 2, dtype=distances.dtype, device=distances.device)
    for rows in split_range(images, choose_tile_rows(images)):
        tile = distances.compute_tile(rows, slice(0, images))
        tile[:, redundant] = -torch.inf
        ranges[rows, 1] = tile.amax(1)
        tile[:, redundant] = torch.inf
        ranges[rows, 0] = tile.amin(1)
        tile.diagonal(rows.start).fill_(-torch.inf)
        neighbors[rows] = tile.topk(count, dim=1, largest=False).indices
    return neighbors, ranges
