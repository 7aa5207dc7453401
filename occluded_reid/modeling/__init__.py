"""Backbones, layers and what a model returns."""

import occluded_reid.compat  # noqa: F401
from occluded_reid.modeling.layers import ImageNormalization, build_neck
from occluded_reid.modeling.outputs import Embedding

__all__ = ["Embedding", "ImageNormalization", "build_neck"]
