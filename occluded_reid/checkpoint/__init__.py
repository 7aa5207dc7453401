"""Weights: kept, read safely, and converted from other code bases."""

from occluded_reid import compat

compat.apply()
