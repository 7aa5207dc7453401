"""Collect the features of a test set and report how well they rank."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.evaluation.evaluator import DatasetEvaluator
from fastreid.evaluation.query_expansion import aqe
from fastreid.evaluation.roc import evaluate_roc
from fastreid.utils import comm
from fastreid.utils.compute_dist import build_dist
from sklearn.metrics import roc_curve

from occluded_reid.errors import UserError
from occluded_reid.evaluation.occlusion import by_occlusion, visibility_auc
from occluded_reid.evaluation.outputs import Embedding, as_embedding
from occluded_reid.evaluation.ranking import distance_matrix, rank_queries
from occluded_reid.evaluation.results import with_intervals


class Collected(NamedTuple):
    """A test set after inference; the first ``queries`` of N images are the queries.

    Attributes:
        features: (N, D) float32.
        visibility: (N, P) in [0, 1]; P is 0 where the model does not tell.
        identities: (N,); likewise cameras and paths.
        queries: their number.
    """

    features: torch.Tensor
    visibility: np.ndarray
    identities: np.ndarray
    cameras: np.ndarray
    paths: np.ndarray
    queries: int


class Evaluator(DatasetEvaluator):
    """Ranks the gallery for each query; every image counts once, whatever rank it was read on.

    Args:
        cfg: ``TEST.METRIC``, ``TEST.AQE``, ``TEST.RERANK`` and ``TEST.ROC`` are read.
        num_query: the first so many images of the data set are the queries.
        truth: occlusion truth by image path, where the data set has it.
    """

    def __init__(
        self,
        cfg: CfgNode,
        num_query: int,
        truth: Mapping[str, Any] | None = None,
    ):
        self._test = copy.deepcopy(cfg.TEST)
        self._num_query = num_query
        self._truth = truth
        self._seen: list[dict[str, Any]] = []

    def reset(self) -> None:
        """Forget all features."""
        self._seen = []

    def process(self, inputs: Mapping[str, Any], outputs: torch.Tensor | Embedding) -> None:
        """Keep a batch and what the model says of it."""
        embedding = as_embedding(outputs)
        self._seen.append(
            {
                "features": embedding.features.float().cpu(),
                "visibility": embedding.visibility.float().cpu(),
                "identities": inputs["targets"].cpu(),
                "cameras": inputs["camids"].cpu(),
                "index": inputs["index"].cpu(),
                "paths": inputs["img_paths"],
            }
        )

    def collected(self) -> Collected | None:
        """Return what all ranks have seen, in the data set's order, on rank 0; None elsewhere.

        Raises:
            UserError: features that are not finite.
        """
        gathered = comm.gather(self._seen)
        if not comm.is_main_process():
            return None
        batches = [batch for of_rank in gathered for batch in of_rank]
        index = torch.cat([batch["index"] for batch in batches]).numpy()
        _, order = np.unique(index, return_index=True)
        features, visibility, identities, cameras = (
            torch.cat([batch[key] for batch in batches])[order]
            for key in ("features", "visibility", "identities", "cameras")
        )
        broken = int((~torch.isfinite(features).all(dim=1)).sum())
        if broken:
            raise UserError(f"the features of {broken} images are not finite: broken weights")
        paths = np.array([path for batch in batches for path in batch["paths"]])[order]
        queries = int(np.count_nonzero(index[order] < self._num_query))
        labels = identities.numpy(), cameras.numpy()
        return Collected(features, visibility.numpy(), *labels, paths, queries)

    def evaluate(self) -> dict[str, Any]:
        """Return the report on rank 0, an empty dict elsewhere.

        Returns:
            ``metric``; ``counts`` of queries, gallery, identities and positives; ``metrics`` in per
            cent with intervals; ``roc`` where asked for; ``by_occlusion`` and ``visibility_auc``
            where the truth is known.

        Raises:
            UserError: no query has a positive, or features are not finite.
        """
        found = self.collected()
        if found is None:
            return {}
        queries = found.queries
        ids, cams = np.split(found.identities, [queries]), np.split(found.cameras, [queries])
        distances = self.distances(found.features[:queries], found.features[queries:])
        ranking = rank_queries(distances, *ids, *cams)
        if len(ranking.query) == 0:
            raise UserError(
                "no query has an image of its identity from another camera in the gallery"
            )
        report: dict[str, Any] = {
            "metric": self._test.METRIC,
            "counts": {
                "queries": queries,
                "queries_without_positive": queries - len(ranking.query),
                "gallery": len(ids[1]),
                "query_identities": len(np.unique(ids[0])),
                "gallery_identities": len(np.unique(ids[1])),
                "positives_per_query": float(ranking.positives.mean()),
            },
            "metrics": with_intervals(ranking),
        }
        if self._test.ROC.ENABLED:
            report["roc"] = _true_positive_rates(distances, *ids, *cams)
        if self._truth is not None:
            paths = found.paths[:queries]
            report["by_occlusion"] = by_occlusion(ranking, paths, self._truth)
            if found.visibility.shape[1]:
                seen = found.visibility[:queries]
                report["visibility_auc"] = visibility_auc(seen, paths, self._truth)
        return report

    def distances(self, query: torch.Tensor, gallery: torch.Tensor) -> np.ndarray:
        """Return (Q, G) distances as ``TEST`` says: metric, query expansion, re-ranking."""
        test = self._test
        if test.METRIC == "dot" and (test.AQE.ENABLED or test.RERANK.ENABLED):
            raise UserError(
                "TEST.AQE and TEST.RERANK compare by cosine or euclidean distance; "
                "they cannot be used with TEST.METRIC dot"
            )
        if test.AQE.ENABLED:
            query, gallery = aqe(query, gallery, test.AQE.QE_TIME, test.AQE.QE_K, test.AQE.ALPHA)
        distances = distance_matrix(query, gallery, test.METRIC)
        if test.RERANK.ENABLED:
            if test.METRIC == "cosine":
                query, gallery = F.normalize(query), F.normalize(gallery)
            jaccard = build_dist(query, gallery, "jaccard", k1=test.RERANK.K1, k2=test.RERANK.K2)
            weight = test.RERANK.LAMBDA
            distances = (1 - weight) * jaccard + weight * distances
        return distances


def _true_positive_rates(
    distances: np.ndarray,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
) -> dict[str, float]:
    """fast-reid's TPR@FPR: pairs of *different* persons are the positives, values in [0, 1]."""
    scores, labels = evaluate_roc(distances, query_ids, gallery_ids, query_cameras, gallery_cameras)
    false_rates, true_rates, _ = roc_curve(labels, scores)
    return {
        f"TPR@FPR={rate:.0e}": float(true_rates[np.argmin(np.abs(false_rates - rate))])
        for rate in (1e-4, 1e-3, 1e-2)
    }
