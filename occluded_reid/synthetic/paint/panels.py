"""Boxes and bars whose coordinates are fractions of a layer's width and height."""

from __future__ import annotations

import numpy as np

from occluded_reid.synthetic.paint.canvas import Color, Layer, Region, limb, rectangle
from occluded_reid.synthetic.paint.palette import RGB, jitter_color
from occluded_reid.synthetic.streams import choose

_METAL: tuple[RGB, ...] = ((70, 74, 78), (134, 138, 142), (52, 62, 54), (176, 178, 176))


def pick_metal(rng: np.random.Generator) -> np.ndarray:
    """Pick the color of a painted, galvanized or rusty bar."""
    return np.array(jitter_color(rng, choose(rng, _METAL), 6), np.float32)


def paint_box(layer: Layer, x0: float, y0: float, x1: float, y1: float, color: Color) -> Region:
    """Paint a rectangle, a little darker at the bottom."""
    h, w = layer.size
    region = rectangle(layer.size, (x0 * w, y0 * h), (x1 * w, y1 * h))
    shade = (1.06 - 0.2 * region.along)[..., None]
    layer.paint(region, np.asarray(color, np.float32) * shade)
    return region


def paint_tube(
    layer: Layer, x0: float, y0: float, x1: float, y1: float, half: float, color: Color
) -> None:
    """Paint a round bar between two points; ``half`` is half its thickness in pixels."""
    h, w = layer.size
    region = limb(layer.size, (x0 * w, y0 * h), (x1 * w, y1 * h), half, half)
    shade = (1.15 - 0.45 * np.abs(region.across + 0.3))[..., None]
    layer.paint(region, np.asarray(color, np.float32) * shade)
