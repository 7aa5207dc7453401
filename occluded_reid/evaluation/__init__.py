"""Evaluation: features, distances, rankings, and results with their uncertainty."""

import occluded_reid.compat  # noqa: F401
