"""Backbones, layers and what a model returns."""

from occluded_reid import compat

compat.apply()
