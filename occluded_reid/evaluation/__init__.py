"""Evaluation: features, distances, rankings, and results with their uncertainty."""

from occluded_reid import compat

compat.apply()

from occluded_reid.evaluation.distances import FeatureDistances, distance_matrix  # noqa: E402
from occluded_reid.evaluation.evaluator import Evaluator  # noqa: E402
from occluded_reid.evaluation.gather import Collected  # noqa: E402
from occluded_reid.evaluation.inference import run_inference  # noqa: E402
from occluded_reid.evaluation.query_expansion import expand  # noqa: E402
from occluded_reid.evaluation.ranking import Ranking, rank_queries  # noqa: E402
from occluded_reid.evaluation.reranking import RerankedDistances  # noqa: E402
from occluded_reid.evaluation.results import results_table, write_results  # noqa: E402
from occluded_reid.modeling.outputs import Embedding  # noqa: E402

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
