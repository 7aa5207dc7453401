"""Trained models at work: embedding, extraction in bulk, export."""

import occluded_reid.compat  # noqa: F401
