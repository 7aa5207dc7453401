"""Rank the gallery for each query and report how well it went."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.evaluation.evaluator import DatasetEvaluator
from fastreid.evaluation.roc import evaluate_roc
from sklearn.metrics import roc_curve

from occluded_reid.evaluation.distances import FeatureDistances, Tiles
from occluded_reid.evaluation.duplicates import image_of_each, own_copies
from occluded_reid.evaluation.gather import Collected, batch_of, collect, merged
from occluded_reid.evaluation.occlusion_metrics import (
    TRUTH_STRIPES,
    by_occlusion,
    visibility_of_images,
    visibility_of_stripes,
)
from occluded_reid.evaluation.per_query import names_of, per_query_report
from occluded_reid.evaluation.query_expansion import expand
from occluded_reid.evaluation.ranking import Ranking, rank_queries
from occluded_reid.evaluation.reranking import RerankedDistances
from occluded_reid.evaluation.results import with_intervals
from occluded_reid.modeling.outputs import Embedding, as_embedding
from occluded_reid.utils.errors import UserError

WORST = 20


class Evaluator(DatasetEvaluator):
    """Ranks the gallery for each query; every image counts once, whatever rank it was read on.

    Args:
        cfg: ``TEST.METRIC``, ``TEST.AQE``, ``TEST.RERANK``, ``TEST.ROC`` and ``MODEL.DEVICE`` are
            read.
        num_query: the first so many images of the data set are the queries.
        truth: occlusion truth by image path, where the data set has it.
        copies: the gallery path of a query's own copy by the query's path, where the data set
            tells; see :func:`copies.own_copies`. Re-ranking and query expansion count a query and
            its copy as one image.

    Attributes:
        stripes: whether the model's parts were stripes, as ``Embedding.stripes``.
    """

    def __init__(
        self,
        cfg: CfgNode,
        num_query: int,
        truth: Mapping[str, Any] | None = None,
        copies: Mapping[str, str] | None = None,
    ):
        self._test = copy.deepcopy(cfg.TEST)
        self._device = torch.device(cfg.MODEL.DEVICE)
        self._num_query = num_query
        self._truth = truth
        self._copies = copies
        self.stripes = True
        self._seen: list[dict[str, torch.Tensor]] = []

    def reset(self) -> None:
        """Forget all features."""
        self._seen = []

    def process(self, inputs: Mapping[str, Any], outputs: torch.Tensor | Embedding) -> None:
        """Keep a batch and what the model says of it."""
        embedding = as_embedding(outputs)
        self.stripes = embedding.stripes
        self._seen.append(batch_of(inputs, embedding))

    def collected(self) -> Collected | None:
        """Return what all ranks have seen, in the data set's order, on rank 0; None elsewhere.

        Raises:
            UserError: features that are not finite.
        """
        self._seen = [merged(self._seen)]
        return collect(self._seen[0], self._num_query)

    def evaluate(self) -> dict[str, Any]:
        """Return the report on rank 0, an empty dict elsewhere.

        Returns:
            ``metric``, ``query_expansion`` and ``reranking`` as they were used; ``counts`` of
            queries, gallery, identities, positives and copies; ``metrics`` in per cent with
            intervals; ``per_query`` results by name, ``worst_queries``; ``roc`` where asked for;
            ``by_occlusion`` and the entries on visibility where the truth is known.

        Raises:
            UserError: no query has a positive, or features are not finite.
        """
        found = self.collected()
        if found is None:
            return {}
        queries = found.queries
        ids, cams = np.split(found.identities, [queries]), np.split(found.cameras, [queries])
        distances = self.compared(found)
        ranking = rank_queries(distances, *ids, *cams)
        if len(ranking.query) == 0:
            raise UserError(
                "no query has an image of its identity from another camera in the gallery"
            )
        report: dict[str, Any] = {
            "metric": self._test.METRIC,
            "query_expansion": self._test.AQE.ENABLED,
            "reranking": self._test.RERANK.ENABLED,
            "counts": {
                "queries": queries,
                "queries_without_positive": queries - len(ranking.query),
                "gallery": len(ids[1]),
                "query_identities": len(np.unique(ids[0])),
                "gallery_identities": len(np.unique(ids[1])),
                "positives_per_query": float(ranking.positives.mean()),
                "queries_with_a_copy_in_the_gallery": int((self._own_copies(found) >= 0).sum()),
            },
            "metrics": with_intervals(ranking),
            "per_query": per_query_report(found.paths[:queries], ranking),
            "worst_queries": _worst_queries(found.paths[:queries], ranking),
        }
        if self._test.ROC.ENABLED:
            report["roc"] = _true_positive_rates(distances[:, :], *ids, *cams)
        if self._truth is not None:
            report["by_occlusion"] = by_occlusion(ranking, found.paths[:queries], self._truth)
            report |= self._visibility(found, self._truth)
        return report

    def compared(self, found: Collected) -> Tiles:
        """Return the (Q, G) distances as ``TEST`` says: metric, query expansion, re-ranking.

        They are computed when and where they are read; ``[:, :]`` gives all at once.
        """
        images = image_of_each(self._own_copies(found), len(found.paths) - found.queries)
        return self._compared(found.features, found.queries, images)

    def distances(self, query: torch.Tensor, gallery: torch.Tensor) -> np.ndarray:
        """Return (Q, G) distances as ``TEST`` says, between any features; all images differ."""
        features = torch.cat([query, gallery])
        return self._compared(features, len(query), torch.arange(len(features)))[:, :]

    def _compared(self, features: torch.Tensor, queries: int, images: torch.Tensor) -> Tiles:
        test, device = self._test, self._device
        if test.AQE.ENABLED:
            features = expand(
                features,
                test.METRIC,
                times=test.AQE.QE_TIME,
                count=test.AQE.QE_K,
                alpha=test.AQE.ALPHA,
                images=images,
                device=device,
            )
        if test.RERANK.ENABLED:
            return RerankedDistances(
                features,
                queries,
                test.METRIC,
                k1=test.RERANK.K1,
                k2=test.RERANK.K2,
                weight=test.RERANK.LAMBDA,
                images=images,
                device=device,
            )
        return FeatureDistances(features[:queries], features[queries:], test.METRIC, device)

    def _own_copies(self, found: Collected) -> np.ndarray:
        return own_copies(found.paths, found.identities, found.cameras, found.queries, self._copies)

    def _visibility(self, found: Collected, truth: Mapping[str, Any]) -> dict[str, Any]:
        """The report's entries on the visibility of the queries, if the model tells any."""
        paths, visibility = found.paths[: found.queries], found.visibility[: found.queries]
        parts = visibility.shape[1]
        if not parts:
            return {}
        report: dict[str, Any] = {
            "image_visibility": visibility_of_images(visibility, paths, truth)
        }
        if self.stripes and TRUTH_STRIPES % parts == 0:
            report |= visibility_of_stripes(visibility, paths, truth)
        return report


def _worst_queries(paths: np.ndarray, ranking: Ranking) -> list[dict[str, Any]]:
    """The twenty queries of the least average precision, the worst first.

    ``query`` is the position among all queries, ``AP`` is in per cent.
    """
    names = names_of(paths)
    order = np.argsort(ranking.average_precision, kind="stable")[:WORST]
    return [
        {
            "query": int(ranking.query[place]),
            "name": names[ranking.query[place]],
            "AP": 100 * float(ranking.average_precision[place]),
            "first_match": int(ranking.first_match[place]),
        }
        for place in order
    ]


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
