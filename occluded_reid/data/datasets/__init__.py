"""Data sets; :mod:`occluded_reid.data.datasets.registry` opens them by name."""
