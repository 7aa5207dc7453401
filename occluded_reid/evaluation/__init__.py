"""Evaluation: features, distances, rankings, and results with their uncertainty."""

from occluded_reid.evaluation.evaluator import Evaluator
from occluded_reid.evaluation.inference import run_inference
from occluded_reid.evaluation.ranking import Ranking, distance_matrix, rank_queries
from occluded_reid.evaluation.results import results_table, write_results

__all__ = [
    "Evaluator",
    "Ranking",
    "distance_matrix",
    "rank_queries",
    "results_table",
    "run_inference",
    "write_results",
]
