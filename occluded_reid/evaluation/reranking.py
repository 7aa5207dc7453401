"""k-reciprocal re-ranking (Zhong et al., CVPR 2017), sparse: nothing of N x N is held.

Shapes: Q queries, G gallery images, N = Q + G images, K neighbours, E non-zero entries.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from occluded_reid.evaluation.distances import TILE, TINY, FeatureDistances, spans
from occluded_reid.evaluation.duplicates import hidden_copies
from occluded_reid.evaluation.knn import find_neighbors


class SparseRows(NamedTuple):
    """A matrix of N rows with few entries in each.

    Attributes:
        starts: (N + 1,) where each row begins in the other two.
        columns: (E,) ascending in each row.
        values: (E,).
    """

    starts: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor


class RerankedDistances:
    """(Q, G) distances ``(1 - lambda) Jaccard + lambda original``; see :class:`similarity.Tiles`.

    As the authors compute them: an image's k1 nearest others that have it among *their* k1 nearest
    are its reciprocal neighbours R; those of a member with k1 / 2 join where more than two thirds
    of them are in R. An image is encoded by ``exp(-original)`` over R, scaled to a sum of 1 and
    averaged over its first k2 neighbours, itself one of them. Jaccard is 1 - sum of the minima over
    sum of the maxima of two encodings.

    The original distance is squared euclidean in the paper's code, divided by the row's largest.
    Here: ``(d - min) / (max - min)`` of the image's distances d by the model's own metric. For
    ``euclidean`` and ``cosine`` (half the squared distance of unit vectors) the smallest is that
    to the image itself, 0, and this is the paper's. For ``dot`` it maps minus the inner product
    onto [0, 1] as well; the order and, as in the ranking itself, independence of the query's length
    are kept, and nothing is normalised that AONet needs. An image is its own first neighbour, at
    distance 0. Of neighbours at equal distances any may be taken.

    Args:
        features: (N, D), queries first.
        queries: Q.
        metric: ``cosine``, ``euclidean`` or ``dot``.
        k1: size of the neighbourhood.
        k2: images in the mean of encodings; 1 leaves it out.
        weight: lambda in [0, 1].
        images: which image each of N is (:func:`copies.image_of_each`); None: all differ.
        device: where it is computed.
    """

    def __init__(
        self,
        features: torch.Tensor,
        queries: int,
        metric: str,
        *,
        k1: int,
        k2: int,
        weight: float,
        images: torch.Tensor | None = None,
        device: torch.device | str = "cpu",
    ):
        images = torch.arange(len(features)) if images is None else images
        hidden = hidden_copies(images)
        self._original = FeatureDistances(features, features, metric, device)
        count = min(max(k1 + 1, k2), len(features) - len(hidden))
        nearest, self._ranges = find_neighbors(self._original, count, hidden)
        expanded = _reciprocal_sets(nearest[:, : k1 + 1], round(k1 / 2) + 1)
        encodings = _mean_over(self._encodings(expanded), nearest[:, :k2])
        self._encoded_queries = _chosen(encodings, torch.arange(queries, device=nearest.device))
        encoded_gallery = _chosen(encodings, images[queries:].to(nearest.device))
        self._members = _transposed(encoded_gallery, len(features))
        self._weight = weight
        self.shape = queries, len(features) - queries

    @torch.no_grad()
    def __getitem__(self, tile: tuple[slice, slice], /) -> np.ndarray:
        rows, gallery = (
            slice(*part.indices(n)[:2]) for part, n in zip(tile, self.shape, strict=True)
        )
        queries, images = self.shape
        columns = slice(queries + gallery.start, queries + gallery.stop)
        low, high = self._ranges[rows, :1], self._ranges[rows, 1:]
        mixed = self._original.tile(rows, columns).sub_(low).div_((high - low).clamp_min(TINY))
        mixed.mul_(self._weight).add_(1 - self._weight)
        for part in spans(len(mixed), max(1, TILE // (32 * images))):  # stays in the cache
            asking = range(rows.start, rows.stop)[part]
            common = self._common(slice(asking.start, asking.stop))[:, gallery]
            mixed[part] -= (1 - self._weight) * common / (2 - common)
        return mixed.cpu().numpy()

    def _common(self, queries: slice) -> torch.Tensor:
        """Return the sums (q, G) of the minima of some queries' encodings and the gallery's.

        Encodings sum to 1, so the maxima sum to 2 minus this. Where no member is shared it is 0.
        """
        starts, columns, values = self._encoded_queries
        own = slice(int(starts[queries.start]), int(starts[queries.stop]))
        entries, lengths = _entries(self._members.starts, columns[own])
        minima = torch.minimum(
            self._members.values[entries], values[own].repeat_interleave(lengths)
        )
        number = torch.arange(queries.stop - queries.start, device=starts.device)
        number = number.repeat_interleave(starts[queries.start : queries.stop + 1].diff())
        count, images = queries.stop - queries.start, self.shape[1]
        keys = number.repeat_interleave(lengths) * images + self._members.columns[entries]
        # summed in float64: the order of additions is not defined on a GPU
        return torch.bincount(keys, minima.double(), minlength=count * images).view(count, images)

    def _encodings(self, members: torch.Tensor) -> SparseRows:
        """Return the encoding over R of each image, from keys ``image * N + member``, ascending."""
        count = self._original.shape[0]
        rows, columns = members // count, members % count
        low, high = self._ranges[rows].unbind(1)
        scaled = (self._original.pairs(rows, columns) - low) / (high - low).clamp_min(TINY)
        scaled[rows == columns] = 0
        weights = torch.exp(-scaled)
        sums = torch.bincount(rows, weights.double(), minlength=count)
        return SparseRows(_starts(rows, count), columns, weights / sums[rows].float())


def _reciprocal_sets(nearest: torch.Tensor, half: int) -> torch.Tensor:
    """Return the expanded reciprocal neighbours as keys ``image * N + member``, ascending.

    Args:
        nearest: (N, K) each image's first neighbours, itself first.
        half: the neighbours, itself counted, of which a member's own set is made.
    """
    count, width = nearest.shape
    near = nearest[:, :half]
    mutual, mutual_near = _mutual(nearest), _mutual(near)
    keys = []
    for rows in spans(count, max(1, TILE // (8 * count))):
        first, is_first = nearest[rows], mutual[rows]  # (rows, K)
        second, is_second = near[first], mutual_near[first]  # (rows, K, half)
        members = first.new_zeros(len(first), count, dtype=torch.bool).scatter_(1, first, is_first)
        overlap = (members.gather(1, second.flatten(1)).view_as(second) & is_second).sum(2)
        joins = is_first & (3 * overlap > 2 * is_second.sum(2))
        own = torch.arange(rows.start, rows.stop, device=nearest.device) * count
        found = (
            (own[:, None] + first)[is_first],
            (own[:, None, None] + second)[is_second & joins[..., None]],
        )
        keys.append(torch.cat(found).unique())
    return torch.cat(keys)


def _mutual(nearest: torch.Tensor) -> torch.Tensor:
    """Return (N, K) bool: whether an image stands among the first K of its neighbour, too."""
    count, width = nearest.shape
    own = torch.arange(count, device=nearest.device)
    found = [
        (nearest[nearest[rows]] == own[rows, None, None]).any(2)
        for rows in spans(count, max(1, TILE // width**2))
    ]
    return torch.cat(found)


def _mean_over(matrix: SparseRows, rows: torch.Tensor) -> SparseRows:
    """Return the matrix whose row i is the mean of ``matrix``'s rows ``rows[i]``; rows (N, K)."""
    count, width = rows.shape
    keys, values = [], []
    for part in spans(count, max(1, TILE // (width * 2048))):
        entries, lengths = _entries(matrix.starts, rows[part].flatten())
        own = torch.arange(part.start, part.stop, device=rows.device).repeat_interleave(width)
        key = own.repeat_interleave(lengths) * count + matrix.columns[entries]
        key, place = key.unique(return_inverse=True)
        keys.append(key)
        values.append(torch.bincount(place, matrix.values[entries].double() / width).float())
    key = torch.cat(keys)
    return SparseRows(_starts(key // count, count), key % count, torch.cat(values))


def _chosen(matrix: SparseRows, rows: torch.Tensor) -> SparseRows:
    """Return the matrix whose row i is ``matrix``'s row ``rows[i]``."""
    entries, lengths = _entries(matrix.starts, rows)
    starts = F.pad(lengths.cumsum(0), (1, 0))
    return SparseRows(starts, matrix.columns[entries], matrix.values[entries])


def _transposed(matrix: SparseRows, columns: int) -> SparseRows:
    """Return the transpose of a matrix of so many columns."""
    lengths = matrix.starts.diff()
    rows = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    order = matrix.columns.argsort(stable=True)
    starts = _starts(matrix.columns[order], columns)
    return SparseRows(starts, rows[order], matrix.values[order])


def _starts(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Return (count + 1,): where each row begins in ``rows``, which ascend."""
    return torch.searchsorted(rows, torch.arange(count + 1, device=rows.device))


def _entries(starts: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the positions of all entries of ``rows``, row after row, and each row's number."""
    lengths = starts[rows + 1] - starts[rows]
    before = lengths.cumsum(0) - lengths
    steps = torch.arange(int(lengths.sum()), device=rows.device)
    return steps + (starts[rows] - before).repeat_interleave(lengths), lengths
