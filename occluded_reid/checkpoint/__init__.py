"""Weights: kept, read safely, and converted from other code bases."""

import occluded_reid.compat  # noqa: F401
