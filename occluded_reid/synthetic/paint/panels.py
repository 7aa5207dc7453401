"""Flat boxes and round bars, placed by shares of a layer's height and width."""

from __future__ import annotations

import numpy as np

from occluded_reid.synthetic.paint.canvas import Colour, Layer, Region, limb, rectangle
from occluded_reid.synthetic.paint.palette import RGB, nearby

_METAL: tuple[RGB, ...] = ((70, 74, 78), (134, 138, 142), (52, 62, 54), (176, 178, 176))


def metal_colour(rng: np.random.Generator) -> np.ndarray:
    """The colour of a painted, galvanised or rusty bar."""
    return np.array(nearby(rng, _METAL[int(rng.integers(len(_METAL)))], 6), np.float32)


def paint_box(
    layer: Layer, x0: float, y0: float, x1: float, y1: float, colour: Colour
) -> Region | None:
    """A rectangle in shares of the layer, a little darker below."""
    h, w = layer.size
    region = rectangle(layer.size, (x0 * w, y0 * h), (x1 * w, y1 * h))
    if region is not None:
        shade = (1.06 - 0.2 * region.along)[..., None]
        layer.paint(region, np.asarray(colour, np.float32) * shade)
    return region


def paint_tube(
    layer: Layer, x0: float, y0: float, x1: float, y1: float, half: float, colour: Colour
) -> None:
    """A round bar between two points in shares, of a half thickness in pixels."""
    h, w = layer.size
    region = limb(layer.size, (x0 * w, y0 * h), (x1 * w, y1 * h), half, half)
    if region is not None:
        shade = (1.15 - 0.45 * np.abs(region.across + 0.3))[..., None]
        layer.paint(region, np.asarray(colour, np.float32) * shade)
