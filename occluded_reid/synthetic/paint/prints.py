"""Prints on the chest and the back of a garment."""

from __future__ import annotations

import numpy as np


def compute_print_weights(kind: str, across: np.ndarray, down: np.ndarray) -> np.ndarray | None:
    """Return the opacity of a print at each point.

    Args:
        kind: one of :data:`occluded_reid.synthetic.person.appearance.PRINTS`.
        across: (h, w) meters from the middle of the print.
        down: (h, w) meters below its middle.

    Returns:
        (h, w) in [0, 1], or None for ``"none"``.
    """
    if kind == "box":
        return _soft_step(0.085 - np.abs(across)) * _soft_step(0.055 - np.abs(down))
    if kind == "disc":
        radius = np.hypot(across, down)
        return _soft_step(0.075 - radius) * (1 - 0.8 * _soft_step(0.035 - radius))
    if kind == "letters":
        row = _soft_step(0.032 - np.abs(down)) * _soft_step(0.105 - np.abs(across))
        return row * _soft_step(np.abs((across * 22) % 1 - 0.5) * 0.05 - 0.008)
    if kind == "triangle":
        return _soft_step(0.06 - np.abs(across) - 0.55 * down) * _soft_step(down + 0.06)
    if kind == "bars":
        rows = _soft_step(np.abs((down * 14) % 1 - 0.5) * 0.07 - 0.015)
        return rows * _soft_step(0.1 - np.abs(across)) * _soft_step(0.1 - np.abs(down))
    return None


def _soft_step(distance: np.ndarray) -> np.ndarray:
    """Return 1 where the distance to the edge, in meters, is positive; the edge is 1 cm soft."""
    return np.clip(distance * 120 + 0.5, 0, 1)
