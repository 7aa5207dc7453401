"""Cars, vans, bicycles and scooters as occluders and as part of the scenery.

Each drawing fills its layer; coordinates are fractions of its width and height.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import numpy as np

from occluded_reid.synthetic.paint.canvas import Color, Layer, ellipse, limb, polygon
from occluded_reid.synthetic.paint.palette import RGB
from occluded_reid.synthetic.streams import Rng, bernoulli, choose, uniform

_PAINT: tuple[RGB, ...] = (
    (36, 37, 41), (92, 95, 100), (162, 165, 168), (212, 212, 208), (44, 60, 104),
    (140, 36, 38), (66, 84, 72), (188, 160, 98),
)  # fmt: skip
_GLASS = (58.0, 70.0, 80.0)
_TIRE = (28.0, 28.0, 30.0)


def _pick_paint(rng: Rng) -> np.ndarray:
    color = np.array(choose(rng, _PAINT), np.float32)
    return np.clip(color + rng.normal(0, 6, 3).astype(np.float32), 10, 235)


def _fill(layer: Layer, points: Sequence[tuple[float, float]], color: Color) -> None:
    """Paint a glossy polygon, lighter at the top."""
    h, w = layer.size
    region = polygon(layer.size, [(x * w, y * h) for x, y in points])
    gloss = 1.16 - 0.42 * region.along + 0.18 * np.exp(-((region.along - 0.3) ** 2) * 90)
    layer.paint(region, np.asarray(color, np.float32) * gloss[..., None].astype(np.float32))


def _paint_wheels(layer: Layer, positions: Sequence[float], radius: float) -> None:
    rings = ((1.0, _TIRE), (0.62, (150.0, 152.0, 156.0)), (0.22, (70.0, 70.0, 74.0)))
    for x, (share, color) in itertools.product(positions, rings):
        center = (x * layer.width, layer.height - radius)
        layer.paint(ellipse(layer.size, center, radius * share, radius * share), color)


def _flip_randomly(layer: Layer, rng: Rng) -> None:
    """Mirror the drawing in half of the cases."""
    if bernoulli(rng, 0.5):
        layer.color = np.ascontiguousarray(layer.color[:, ::-1])
        layer.alpha = np.ascontiguousarray(layer.alpha[:, ::-1])


def _paint_car(layer: Layer, rng: Rng, roof: Sequence[tuple[float, float]]) -> None:
    """Paint a car from the side: body, roof with the given corners, windows, wheels, lights."""
    h, w = layer.size
    color = _pick_paint(rng)
    _fill(layer, roof, color)
    (left, low), (peak, top), (end, _), (right, _) = roof
    middle = uniform(rng, 0.46, 0.56)
    for x0, x1, x2, x3 in (
        (left + 0.05, peak + 0.015, middle - 0.012, middle - 0.012),
        (middle + 0.012, middle + 0.012, end - 0.015, right - 0.05),
    ):
        _fill(layer, [(x0, low), (x1, top + 0.05), (x2, top + 0.05), (x3, low)], _GLASS)
    body = [(0.01, 0.55), (0.05, 0.42), (0.5, low - 0.02), (0.95, 0.41), (0.99, 0.55), (0.99, 0.82)]
    _fill(layer, [*body, (0.97, 0.86), (0.03, 0.86), (0.01, 0.82)], color)
    dark = color * np.float32(0.55)
    for x in (left + 0.06, middle, right - 0.04):
        layer.paint(limb(layer.size, (x * w, low * h), (x * w, 0.8 * h), 0.7, 0.7), dark)
    sill = limb(layer.size, (0.03 * w, 0.83 * h), (0.97 * w, 0.83 * h), 0.03 * h, 0.03 * h)
    layer.paint(sill, dark)
    _fill(layer, [(0.01, 0.5), (0.06, 0.47), (0.07, 0.57), (0.01, 0.58)], (226, 220, 196))
    _fill(layer, [(0.95, 0.46), (0.99, 0.5), (0.99, 0.6), (0.95, 0.58)], (150, 30, 30))
    _paint_wheels(layer, (0.21, 0.79), min(0.17 * h, 0.12 * w))
    _flip_randomly(layer, rng)


# A three-box car, and one with a steep rear.
draw_sedan = partial(_paint_car, roof=[(0.16, 0.42), (0.32, 0.04), (0.66, 0.04), (0.84, 0.42)])
draw_hatchback = partial(_paint_car, roof=[(0.18, 0.42), (0.34, 0.02), (0.85, 0.05), (0.95, 0.42)])


def draw_van(layer: Layer, rng: Rng) -> None:
    """Draw a delivery van: a tall box with a slanted nose."""
    h, w = layer.size
    color = _pick_paint(rng)
    body = [(0.01, 0.55), (0.13, 0.42), (0.24, 0.02), (0.98, 0.02), (0.99, 0.85), (0.01, 0.85)]
    _fill(layer, body, color)
    _fill(layer, [(0.16, 0.42), (0.25, 0.1), (0.38, 0.1), (0.38, 0.42)], _GLASS)
    if bernoulli(rng, 0.6):
        band = _pick_paint(rng)
        _fill(layer, [(0.42, 0.5), (0.99, 0.5), (0.99, 0.62), (0.42, 0.62)], band)
    for x in (0.4, 0.7):
        top, bottom = (x * w, 0.06 * h), (x * w, 0.82 * h)
        layer.paint(limb(layer.size, top, bottom, 0.8, 0.8), color * np.float32(0.6))
    _fill(layer, [(0.01, 0.57), (0.05, 0.54), (0.06, 0.66), (0.01, 0.66)], (226, 220, 196))
    _paint_wheels(layer, (0.2, 0.8), min(0.15 * h, 0.12 * w))
    _flip_randomly(layer, rng)


def draw_bicycle(layer: Layer, rng: Rng) -> None:
    """Draw a parked bicycle with a basket; much of the background shows through."""
    h, w = layer.size
    color, thickness = _pick_paint(rng), max(0.018 * h, 1.2)
    radius = min(0.34 * h, 0.24 * w)
    low = h - radius
    rear, front = (radius + 1, low), (w - radius - 1, low)
    for x, y in (rear, front):
        wheel = ellipse(layer.size, (x, y), radius, radius)
        reach = np.hypot(wheel.across, 2 * wheel.along - 1)
        ring = wheel.with_mask(wheel.mask * np.clip((reach - 0.84) * 30, 0, 1))
        layer.paint(ring, _TIRE)
        layer.paint(wheel, (120.0, 122.0, 126.0), 0.22)  # spokes
    crank, saddle, bar = (0.47 * w, low), (0.38 * w, 0.22 * h), (0.74 * w, 0.16 * h)
    for start, end in ((rear, crank), (rear, saddle), (crank, saddle), (crank, bar), (saddle, bar)):
        layer.paint(limb(layer.size, start, end, thickness, thickness), color)
    layer.paint(limb(layer.size, bar, front, thickness, thickness), color)
    seat = limb(layer.size, (0.31 * w, 0.19 * h), (0.44 * w, 0.19 * h), 0.035 * h, 0.025 * h)
    layer.paint(seat, _TIRE)
    _fill(layer, [(0.72, 0.08), (0.99, 0.08), (0.95, 0.4), (0.76, 0.4)], (112, 92, 66))
    _flip_randomly(layer, rng)


def draw_scooter(layer: Layer, rng: Rng) -> None:
    """Draw a parked motor scooter."""
    h, w = layer.size
    color = _pick_paint(rng)
    _paint_wheels(layer, (0.2, 0.82), min(0.2 * h, 0.15 * w))
    _fill(layer, [(0.06, 0.5), (0.46, 0.44), (0.52, 0.78), (0.3, 0.86), (0.08, 0.74)], color)
    _fill(layer, [(0.46, 0.72), (0.72, 0.72), (0.72, 0.84), (0.4, 0.84)], color * np.float32(0.7))
    _fill(layer, [(0.64, 0.84), (0.68, 0.16), (0.78, 0.14), (0.86, 0.72), (0.76, 0.84)], color)
    _fill(layer, [(0.08, 0.42), (0.46, 0.36), (0.48, 0.46), (0.08, 0.52)], (38, 34, 34))
    handlebar = limb(layer.size, (0.6 * w, 0.1 * h), (0.78 * w, 0.08 * h), 0.025 * h, 0.025 * h)
    layer.paint(handlebar, _TIRE)
    _fill(layer, [(0.68, 0.14), (0.72, 0.0), (0.9, 0.0), (0.82, 0.14)], (150, 166, 176))
    layer.paint(ellipse(layer.size, (0.8 * w, 0.28 * h), 0.045 * w, 0.06 * h), (232, 226, 204))
    _flip_randomly(layer, rng)
