"""Backbones, layers and what a model returns."""

from occluded_reid import compat

compat.apply()

from occluded_reid.modeling.layers import build_neck  # noqa: E402
from occluded_reid.modeling.outputs import Embedding  # noqa: E402

__all__ = ["Embedding", "build_neck"]
