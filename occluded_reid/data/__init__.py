"""From image files to batches."""

from occluded_reid import compat

compat.apply()
