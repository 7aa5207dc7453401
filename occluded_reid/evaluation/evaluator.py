"""Turn the embeddings of a test set into a report."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import occluded_reid.compat  # noqa: F401
from occluded_reid.evaluation import gather, occlusion_metrics
from occluded_reid.evaluation.distances import FeatureDistances, Tiles, limit_sizes
from occluded_reid.evaluation.duplicates import find_copies
from occluded_reid.evaluation.gather import Batch, FeatureTable
from occluded_reid.evaluation.query_expansion import expand_features
from occluded_reid.evaluation.ranking import Ranking, rank_queries
from occluded_reid.evaluation.reranking import RerankedDistances
from occluded_reid.evaluation.results import (
    MAJOR_METRICS,
    report_queries,
    strip_common_folder,
    summarize_ranking,
)
from occluded_reid.modeling.outputs import Embedding, as_embedding
from occluded_reid.modeling.similarity import resolve_metric
from occluded_reid.utils.errors import UserError

if TYPE_CHECKING:
    from occluded_reid.config import CfgNode

logger = logging.getLogger(__name__)

WORST = 20
MAX_CAMERAS = 16  # of the gallery, for the results by pair of cameras
ALIKE = 1e-4  # differences below this, relative to the largest value, drown in float32's distances


class Evaluator:
    """Collect embeddings, rank the gallery for each query, report; an evaluator of fast-reid's.

    An image that several ranks read counts once.

    Args:
        cfg: reads ``TEST.METRIC``, ``TEST.SIMILARITY``, ``TEST.TIES``, ``TEST.AQE``,
            ``TEST.RERANK``, ``TEST.ROC``, ``MODEL.DEVICE``.
        num_query: number of queries, which are the first images of the data set.
        truth: occlusion truth by image path, if the data set has it.
    """

    def __init__(self, cfg: CfgNode, num_query: int, truth: Mapping[str, Any] | None = None):
        self._test = copy.deepcopy(cfg.TEST)
        self.metric = resolve_metric(cfg.TEST)
        self._device = torch.device(cfg.MODEL.DEVICE)
        self._num_query = num_query
        self._truth = truth
        self.stripes = True  # whether the model's parts are stripes, as Embedding.stripes
        self._batches: list[Batch] = []
        self.ranked: tuple[FeatureTable, Tiles, Ranking] | None = None  # by evaluate, on rank 0

    def reset(self) -> None:
        """Discard all features."""
        self._batches = []

    def process(self, inputs: Mapping[str, Any], outputs: torch.Tensor | Embedding) -> None:
        """Collect the embedding of a batch."""
        embedding = as_embedding(outputs)
        self.stripes = embedding.stripes
        self._batches.append(gather.select_rows(inputs, embedding, self.metric))

    def gather(self) -> FeatureTable | None:
        """Return the features of all ranks on rank 0; None elsewhere."""
        self._batches = [gather.merge_batches(self._batches)]
        return gather.gather_table(self._batches[0], self._num_query)

    def evaluate(self) -> dict[str, Any]:
        """Return the report on rank 0, an empty dict elsewhere.

        Returns:
            ``metric``, ``ties``, ``query_expansion`` and ``reranking`` in use; ``counts`` of
            queries, gallery, identities, positives and duplicates; ``metrics`` in per cent with
            intervals; ``per_query`` results by name and ``worst_queries``; ``roc`` if ``TEST.ROC``;
            ``by_cameras`` of :meth:`measure_by_cameras`; ``by_occlusion`` and the metrics of
            visibility if the truth is known.
        """
        table = self.gather()
        if table is None:
            return {}
        queries, labels = table.queries, table.labels
        query_paths, copies = table.paths[:queries], find_copies(table.images, queries)
        _warn_of_copies(copies, *labels)
        _warn_if_alike(table.features)
        distances = self.compute_distances(table)
        ranking = self.rank(distances, table)
        self.ranked = table, distances, ranking
        if len(ranking.query) == 0:
            raise UserError(
                "no query has another image of its identity from another camera in the gallery"
            )
        report: dict[str, Any] = {
            "metric": self.metric,
            "ties": self._test.TIES,
            "query_expansion": self._test.AQE.ENABLED,
            "reranking": self._test.RERANK.ENABLED,
            "counts": {
                "queries": queries,
                "queries_without_positive": queries - len(ranking.query),
                "gallery": len(labels[1]),
                "query_identities": len(np.unique(labels[0])),
                "gallery_identities": len(np.unique(labels[1])),
                "positives_per_query": float(ranking.positives.mean()),
                "queries_with_a_copy_in_the_gallery": len(copies),
            },
            "metrics": summarize_ranking(ranking),
            "per_query": report_queries(query_paths, ranking),
            "worst_queries": _list_worst_queries(query_paths, ranking),
            "by_cameras": self.measure_by_cameras(table),
        }
        if self._test.ROC.ENABLED:
            report["roc"] = _compute_roc(distances[:, :], *labels)
        if self._truth is not None:
            of_queries = query_paths, self._truth
            report["by_occlusion"] = occlusion_metrics.measure_by_occlusion(ranking, *of_queries)
            report |= occlusion_metrics.measure_visibility(
                table.visibility[:queries], *of_queries, stripes=self.stripes
            )
        return report

    def compute_distances(self, table: FeatureTable) -> Tiles:
        """Return (Q, G) distances by ``TEST``: similarity, query expansion and re-ranking.

        Tiles are computed when they are read; ``[:, :]`` returns all at once.
        """
        test, features, device = self._test, table.features, self._device
        metric, images, visibility = self.metric, table.images, torch.from_numpy(table.visibility)
        if metric != "cosine" or test.AQE.ENABLED:  # FeatureDistances scales cosines' rows
            features = limit_sizes(features)
        if test.AQE.ENABLED:
            aqe = test.AQE
            features, visibility = expand_features(
                features, metric, times=aqe.QE_TIME, count=aqe.QE_K, alpha=aqe.ALPHA,
                images=images, device=device, visibility=visibility,
            )  # fmt: skip
        if test.RERANK.ENABLED:
            rerank = test.RERANK
            return RerankedDistances(
                features, table.queries, metric, k1=rerank.K1, k2=rerank.K2,
                weight=rerank.LAMBDA, images=images, device=device, visibility=visibility,
            )  # fmt: skip
        (query, gallery), parts = (
            (each[: table.queries], each[table.queries :]) for each in (features, visibility)
        )
        return FeatureDistances(query, gallery, metric, device, parts)

    def measure_by_cameras(self, table: FeatureTable) -> dict[str, dict[str, float]]:
        """Return ``queries``, Rank-1 and mAP (per cent) by pair of cameras, as ``"1 to 4"``.

        The queries of the first camera are searched for in the gallery images of the second alone.
        Nothing is measured of one camera, of more than ``MAX_CAMERAS``, or after query expansion or
        re-ranking, which compare whole galleries.
        """
        cameras, images = table.cameras, np.arange(len(table.cameras))
        others = np.unique(cameras[table.queries :])
        if self._test.AQE.ENABLED or self._test.RERANK.ENABLED:
            return {}
        if not 1 < len(others) <= MAX_CAMERAS:
            return {}
        pairs = {}
        for other in others:
            kept = (images < table.queries) | (cameras == other)
            part = table._replace(**{
                name: getattr(table, name)[kept]
                for name in ("features", "visibility", "identities", "cameras", "paths", "images")
            })  # fmt: skip
            ranking = self.rank(self.compute_distances(part), part)
            metrics, asked = ranking.compute_metrics(), cameras[ranking.query]
            for camera in np.unique(asked):
                means = {
                    name: float(metrics[name][asked == camera].mean()) for name in MAJOR_METRICS
                }
                pairs[f"{camera} to {other}"] = {"queries": int((asked == camera).sum()), **means}
        return pairs

    def rank(self, distances: Tiles, table: FeatureTable) -> Ranking:
        """Rank the gallery for each query of ``table`` by the rules of :mod:`.ranking`."""
        copies = find_copies(table.images, table.queries)
        return rank_queries(distances, *table.labels, copies=copies, ties=self._test.TIES)


def _warn_of_copies(
    copies: Mapping[int, np.ndarray], query_ids: np.ndarray, gallery_ids: np.ndarray,
    query_cameras: np.ndarray, gallery_cameras: np.ndarray,
) -> None:  # fmt: skip
    """Warn of queries whose own image is in the gallery where Market-1501's rules keep it."""
    kept = [
        query
        for query, own in copies.items()
        if (gallery_ids[own] != query_ids[query]).any()
        or (gallery_cameras[own] != query_cameras[query]).any()
    ]
    if kept:
        logger.warning(
            f"{len(kept)} queries are in the gallery too, under another camera or identity: a "
            "query's own image is not scored. tools/check_dataset.py NAME names them"
        )


def _warn_if_alike(features: torch.Tensor) -> None:
    """Warn if the features of all images are equal but for rounding."""
    size = float(features[0].abs().max())
    chunks = features.split(gather.CHUNK)
    if all(float((chunk - features[0]).abs().max()) <= ALIKE * size for chunk in chunks):
        logger.warning(
            "the features of all images are the same: the model has collapsed, and the results "
            "mean nothing"
        )


def _list_worst_queries(paths: np.ndarray, ranking: Ranking) -> list[dict[str, Any]]:
    """Return the queries with the lowest average precision (per cent), the worst first."""
    names = strip_common_folder(paths)
    order = np.argsort(ranking.average_precision, kind="stable")[:WORST]
    return [
        {
            "query": int(ranking.query[index]),
            "name": names[ranking.query[index]],
            "AP": 100 * float(ranking.average_precision[index]),
            "first_match": int(ranking.first_match[index]),
        }
        for index in order
    ]


def _compute_roc(distances: np.ndarray, *labels: np.ndarray) -> dict[str, float]:
    """Return fast-reid's TPR@FPR in [0, 1]; its positives are pairs of *different* persons.

    Nothing is returned if there are only pairs of one kind, as with one gallery image.
    """
    from fastreid.evaluation.roc import evaluate_roc
    from sklearn.metrics import roc_curve

    scores, different = evaluate_roc(distances, *labels)
    if len(np.unique(different)) < 2:
        logger.warning("TEST.ROC needs pairs of the same and of different persons: left out")
        return {}
    false_rates, true_rates, _ = roc_curve(different, scores)
    return {
        f"TPR@FPR={rate:.0e}": float(true_rates[np.argmin(np.abs(false_rates - rate))])
        for rate in (1e-4, 1e-3, 1e-2)
    }
