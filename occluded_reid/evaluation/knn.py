"""The nearest images of each image, and the range of its distances.

Where a processor has units that multiply numbers of half the bytes many times faster, they propose
what may be nearest, by a bound on their error, and float32 decides: the result is the same.

Shapes: N images, r of them at a time, D feature dimensions, W groups of columns, n pairs.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from occluded_reid.evaluation.distances import TILE, TINY, FeatureDistances, rows_at_once, spans
from occluded_reid.evaluation.rounded import Rounded

GROUP = 32  # columns of which only the best is looked at first
CROWD = 2  # candidates in a larger share of the groups than 1 / CROWD are too many
FEW = 3000  # so few images are found in float32 before proposals are made
EXPONENT = 7  # no vector is longer than 2^7: products stay far below float16's largest number


@torch.no_grad()
def nearest_images(
    distances: FeatureDistances, count: int, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ``count`` nearest of N images to each of them, and each one's range of distances.

    An image is its own first neighbour, also by inner product, where a longer vector may be nearer
    to it than itself. Which of several equally near images is taken is not defined.

    Args:
        distances: (N, N), of the images to themselves.
        count: at most N without the hidden ones.
        hidden: positions of images that are nobody's neighbour and in nobody's range.

    Returns:
        (N, count) positions, the nearest first; (N, 2) smallest and largest distance.
    """
    images = distances.shape[0]
    nearest = torch.empty(images, count, dtype=torch.int64, device=distances.device)
    ranges = torch.empty(images, 2, dtype=distances.dtype, device=distances.device)
    left = torch.arange(images)
    half = half_type(distances)
    if half is not None and images >= max(FEW, CROWD * GROUP * count):
        left = _from_proposals(_Proposals(distances, hidden, half), nearest, ranges)
    for part in spans(len(left), rows_at_once(images)):
        rows = left[part]
        tile = distances.tile(rows, slice(0, images))
        tile[:, hidden] = -torch.inf
        ranges[rows, 1] = tile.amax(1)
        tile[:, hidden] = torch.inf
        ranges[rows, 0] = tile.amin(1)
        tile[torch.arange(len(rows)), rows] = -torch.inf
        nearest[rows] = tile.topk(count, dim=1, largest=False).indices
    return nearest, ranges


def half_type(distances: FeatureDistances) -> torch.dtype | None:
    """Return the type of half the bytes that the processor has matrix units for; None: neither."""
    if distances.device.type != "cpu" or distances.query.dtype != torch.float32:
        return None
    units: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    types = {"amx_fp16": torch.float16, "amx_bf16": torch.bfloat16}  # the more exact one first
    return next((types[unit] for unit in types if units.get(unit)), None)


def _from_proposals(
    proposals: _Proposals, nearest: torch.Tensor, ranges: torch.Tensor
) -> torch.Tensor:
    """Fill in neighbours and ranges; return the positions of images for which this was not enough.

    Args:
        proposals: of all N images.
        nearest: (N, count), filled.
        ranges: (N, 2), filled.
    """
    left = []
    for part in spans(len(nearest), rows_at_once(len(nearest))):
        near, far = proposals.of(part, nearest.shape[1])
        ranges[part, 0] = near.padded(near.distances, torch.inf).amin(1)
        ranges[part, 1] = far.padded(far.distances, -torch.inf).amax(1)
        own = torch.arange(part.start, part.stop)
        others = near.distances.masked_fill(near.columns == own[near.rows], torch.inf)
        order = near.padded(others, torch.inf).topk(nearest.shape[1] - 1, largest=False).indices
        nearest[part, 0] = own
        nearest[part, 1:] = near.padded(near.columns, 0).gather(1, order)
        left.append(own[~(near.complete & far.complete)])
    return torch.cat(left)


class _Pairs(NamedTuple):
    """Rows of a block and columns that are among the first of each.

    Attributes:
        rows: (n,) ascending.
        columns: (n,).
        distances: (n,).
        complete: (r,) whether all of a row's are here.
        width: at least as many as any row has.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    distances: torch.Tensor
    complete: torch.Tensor
    width: int

    def padded(self, values: torch.Tensor, filling: float) -> torch.Tensor:
        """Return values (n,) as (r, width)."""
        starts = torch.searchsorted(self.rows, torch.arange(len(self.complete)))
        matrix = values.new_full((len(self.complete), self.width), filling)
        matrix[self.rows, torch.arange(len(values)) - starts[self.rows]] = values
        return matrix


class _Proposals:
    """Columns that may be among the first of a row, by rounded products.

    With ``v = s f`` of features f, or of ``f / |f|`` for ``cosine``, an image j is the nearer to i
    the larger ``v_i v_j - o_j`` is; ``o_j = |v_j|^2 / 2`` for ``euclidean``, else 0. s is a power
    of 2.

    Args:
        distances: (N, N), of the images to themselves.
        hidden: columns that are never proposed.
        half: the type of the products.
    """

    def __init__(self, distances: FeatureDistances, hidden: torch.Tensor, half: torch.dtype):
        images, dim = distances.query.shape
        self._distances = distances
        self._scale = 2.0**EXPONENT
        if distances.metric != "cosine":
            longest = float(torch.linalg.vector_norm(distances.query, dim=1).max())
            self._scale /= 2.0 ** math.frexp(longest)[1]
        self._rounded = Rounded(images, dim, half)
        for part in spans(images, max(1, TILE // (32 * dim))):  # stays in the cache
            self._rounded[part] = self._vectors(part)
        self._offsets: torch.Tensor | float = 0
        if distances.metric == "euclidean":
            self._offsets = self._rounded.lengths.square() / 2
        columns = GROUP * math.ceil(images / GROUP)
        self._scores = torch.empty(rows_at_once(images), columns)
        self._never = torch.cat([hidden, torch.arange(images, columns)])

    def of(self, part: slice, count: int) -> tuple[_Pairs, _Pairs]:
        """Return what may be among the ``count`` nearest of some rows, and what the farthest."""
        products = self._rounded.values[part] @ self._rounded.values.T  # (r, N)
        vectors = self._vectors(part)
        largest = torch.linalg.vector_norm(vectors, dim=1) * self._rounded.longest
        tiny = torch.finfo(products.dtype).smallest_normal  # what is below may be taken for 0
        margins = 2 * (self._rounded.bounds(vectors) + self._rounded.rounding * largest + tiny)
        scores = self._scores[: len(products)]
        scores[:, : len(self._rounded)].copy_(products).sub_(self._offsets)
        scores[:, self._never] = -torch.inf
        near = self._first(scores, count, margins, part.start)
        scores.neg_()
        scores[:, self._never] = -torch.inf
        return near, self._first(scores, 1, margins, part.start)

    def _vectors(self, part: slice) -> torch.Tensor:
        vectors = self._distances.query[part]
        if self._distances.metric == "cosine":
            vectors = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min(
                TINY
            )
        return vectors * self._scale

    def _first(self, scores: torch.Tensor, count: int, margins: torch.Tensor, start: int) -> _Pairs:
        """Return all that is within the margin of the count-th largest score of a row.

        Args:
            scores: (r, GROUP W).
            count: at most W.
            margins: (r,).
            start: the image of the first row.
        """
        # images that stand side by side in a data set fall into different groups
        groups = scores.unflatten(1, (GROUP, -1))
        best = groups.amax(1)  # (r, W)
        least = best.topk(count).values[:, -1] - margins  # others of these groups may be as near
        wanted = best >= least[:, None]
        numbers = wanted.sum(1)
        complete = (count <= numbers) & (numbers <= best.shape[1] // CROWD)
        rows, places = (wanted & complete[:, None]).nonzero().unbind(1)
        found, members = (groups[rows, :, places] >= least[rows, None]).nonzero().unbind(1)
        rows, columns = rows[found], members * best.shape[1] + places[found]
        distances = self._distances.pairs(start + rows, columns)
        width = max(count, int(rows.bincount(minlength=1).max()))
        return _Pairs(rows, columns, distances, complete, width)
