"""Evaluation: features, distances, rankings, and results with confidence intervals.

Start at :mod:`occluded_reid.evaluation.testing`. Nothing is imported here, so that reading results
(:mod:`~occluded_reid.evaluation.results`, :mod:`~occluded_reid.evaluation.comparison`) needs NumPy
alone.
"""
