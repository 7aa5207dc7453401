"""What all tests share."""

from __future__ import annotations

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import occluded_reid  # noqa: E402, F401  (fast-reid can be imported only after it)
