"""Evaluation: features, distances, rankings, and results with their uncertainty."""

from occluded_reid.evaluation.collection import Collected
from occluded_reid.evaluation.evaluator import Evaluator
from occluded_reid.evaluation.expansion import expand
from occluded_reid.evaluation.inference import run_inference
from occluded_reid.evaluation.outputs import Embedding
from occluded_reid.evaluation.ranking import Ranking, rank_queries
from occluded_reid.evaluation.reranking import RerankedDistances
from occluded_reid.evaluation.results import results_table, write_results
from occluded_reid.evaluation.similarity import FeatureDistances, distance_matrix

__all__ = [
    "Collected",
    "Embedding",
    "Evaluator",
    "FeatureDistances",
    "Ranking",
    "RerankedDistances",
    "distance_matrix",
    "expand",
    "rank_queries",
    "results_table",
    "run_inference",
    "write_results",
]
