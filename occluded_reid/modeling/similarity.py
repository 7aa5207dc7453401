"""The similarity of two images whose parts are visible or not: ``TEST.SIMILARITY``.

An image's features are compared as rows, one vector per image. Two forms compare part by part, by
cosines that are weighted by visibility, b in the first image and b' in the second:

* ``shared``: ``sum_k b_k b'_k cos_k / sum_k b_k b'_k``, the mean over what both images show, as
  PGFA, VPM and BPBReID compare: two matrix products, of rows and of visibility.
* ``query``: ``(1/P) sum_k b_k cos_k``. The order is that of a mean over what the query shows. The
  rows of the gallery have norm 1 whatever is visible, so that an index of vectors can hold them.

With ``paper`` the rows are compared by ``TEST.METRIC``, and ``dot`` is AONet's Eq. 8,
``(1/P) sum_k b_k b'_k cos_k``. Dividing nothing by the weights, it ranks a gallery image higher for
showing more of the person.

Shapes: N images, D dimensions of a row, P parts, C channels of a part, D = P * C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from occluded_reid.utils.errors import UserError

if TYPE_CHECKING:
    from occluded_reid.config import CfgNode
    from occluded_reid.modeling.outputs import Embedding

VECTOR_METRICS, PART_METRICS = ("cosine", "euclidean", "dot"), ("shared", "query")
METRICS = VECTOR_METRICS + PART_METRICS
"""How rows are compared; a feature file, an index and an exported model name theirs."""
NO_VISIBILITY = torch.empty(0, 0)


def resolve_metric(test: CfgNode) -> str:
    """Return one of :data:`METRICS`: ``TEST.SIMILARITY``, or ``TEST.METRIC`` if it is paper."""
    return test.METRIC if test.SIMILARITY == "paper" else test.SIMILARITY


def make_rows(embedding: Embedding, metric: str) -> torch.Tensor:
    """Return the vectors (N, D) by which the images of an embedding, of tensors, are compared.

    An embedding of rows, as a file or an index has them, keeps them. Rows of ``cosine`` and
    ``euclidean``, and of a model without parts, are its features. Otherwise each part has the norm
    ``1 / sqrt(P)``, and with ``dot`` that times its visibility, so that the inner product of two
    rows is Eq. 8.

    >>> from occluded_reid.modeling.outputs import Embedding
    >>> embedding = Embedding(torch.randn(2, 6, 16), torch.full((2, 6), 0.5))
    >>> [make_rows(embedding, metric).norm(dim=1).round(decimals=4) for metric in ("dot", "query")]
    [tensor([0.5000, 0.5000]), tensor([1., 1.])]

    Raises:
        UserError: ``metric`` compares parts, and the model has none with a visibility.
    """
    features, visibility, _ = embedding
    if features.dim() == 2:
        return features
    has_parts = features.shape[1] == visibility.shape[1]
    if metric in PART_METRICS and not has_parts:
        raise UserError(
            f"TEST.SIMILARITY {metric} needs a visibility for each part, but the model compares "
            "one vector per image: use paper"
        )
    if not has_parts or metric in ("cosine", "euclidean"):
        return features.flatten(1)
    rows = F.normalize(features, dim=2).flatten(1) / features.shape[1] ** 0.5
    return weight_parts(rows, visibility) if metric == "dot" else rows


def make_query_rows(embedding: Embedding, metric: str) -> torch.Tensor:
    """Return the vectors (N, D) of queries, whose inner products with rows are ``query``.

    They differ from rows only for the metrics of parts.
    """
    rows = make_rows(embedding, metric)
    return weight_parts(rows, embedding.visibility) if metric in PART_METRICS else rows


def weight_parts(rows: torch.Tensor, visibility: torch.Tensor) -> torch.Tensor:
    """Return rows (N, D) whose P parts are multiplied by their visibility (N, P)."""
    weights = visibility.to(rows)[..., None]
    return (rows.unflatten(1, (visibility.shape[1], -1)) * weights).flatten(1)
