"""Cars, vans, bicycles and scooters as occluders and as part of the scenery.

Each drawing fills its layer; coordinates are shares of its height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from occluded_reid.synthetic.paint.canvas import Colour, Layer, ellipse, limb, polygon
from occluded_reid.synthetic.paint.palette import RGB
from occluded_reid.synthetic.streams import between, chance

_PAINT: tuple[RGB, ...] = (
    (36, 37, 41),
    (92, 95, 100),
    (162, 165, 168),
    (212, 212, 208),
    (44, 60, 104),
    (140, 36, 38),
    (66, 84, 72),
    (188, 160, 98),
)
_GLASS = (58.0, 70.0, 80.0)
_TYRE = (28.0, 28.0, 30.0)


def _paint_colour(rng: np.random.Generator) -> np.ndarray:
    colour = np.array(_PAINT[int(rng.integers(len(_PAINT)))], np.float32)
    return np.clip(colour + rng.normal(0, 6, 3).astype(np.float32), 10, 235)


def _shape(layer: Layer, points: Sequence[tuple[float, float]], colour: Colour) -> None:
    """A polygon in shares of the layer, lighter above than below as lacquer is."""
    h, w = layer.size
    region = polygon(layer.size, [(x * w, y * h) for x, y in points])
    if region is not None:
        gloss = 1.16 - 0.42 * region.along + 0.18 * np.exp(-((region.along - 0.3) ** 2) * 90)
        layer.paint(region, np.asarray(colour, np.float32) * gloss[..., None].astype(np.float32))


def _wheel(layer: Layer, x: float, y: float, radius: float) -> None:
    for share, colour in ((1.0, _TYRE), (0.62, (150.0, 152.0, 156.0)), (0.22, (70.0, 70.0, 74.0))):
        layer.paint(ellipse(layer.size, (x, y), radius * share, radius * share), colour)


def _flipped(layer: Layer, rng: np.random.Generator) -> None:
    """Turn the drawing to the other side in half of the cases."""
    if chance(rng, 0.5):
        layer.colour = np.ascontiguousarray(layer.colour[:, ::-1])
        layer.alpha = np.ascontiguousarray(layer.alpha[:, ::-1])


def _car(layer: Layer, rng: np.random.Generator, roof: Sequence[tuple[float, float]]) -> None:
    """A car from the side: body below, a glass house whose corners are given, wheels, lights."""
    h, w = layer.size
    colour = _paint_colour(rng)
    _shape(layer, roof, colour)
    (left, low), (peak, top), (end, _), (right, _) = roof
    middle = between(rng, 0.46, 0.56)
    for x0, x1, x2, x3 in (
        (left + 0.05, peak + 0.015, middle - 0.012, middle - 0.012),
        (middle + 0.012, middle + 0.012, end - 0.015, right - 0.05),
    ):
        _shape(layer, [(x0, low), (x1, top + 0.05), (x2, top + 0.05), (x3, low)], _GLASS)
    body = [(0.01, 0.55), (0.05, 0.42), (0.5, low - 0.02), (0.95, 0.41), (0.99, 0.55), (0.99, 0.82)]
    _shape(layer, [*body, (0.97, 0.86), (0.03, 0.86), (0.01, 0.82)], colour)
    dark = colour * np.float32(0.55)
    for x in (left + 0.06, middle, right - 0.04):
        layer.paint(limb(layer.size, (x * w, low * h), (x * w, 0.8 * h), 0.7, 0.7), dark)
    layer.paint(
        limb(layer.size, (0.03 * w, 0.83 * h), (0.97 * w, 0.83 * h), 0.03 * h, 0.03 * h), dark
    )
    _shape(layer, [(0.01, 0.5), (0.06, 0.47), (0.07, 0.57), (0.01, 0.58)], (226, 220, 196))
    _shape(layer, [(0.95, 0.46), (0.99, 0.5), (0.99, 0.6), (0.95, 0.58)], (150, 30, 30))
    radius = min(0.17 * h, 0.12 * w)
    for x in (0.21, 0.79):
        _wheel(layer, x * w, h - radius, radius)
    _flipped(layer, rng)


def draw_saloon(layer: Layer, rng: np.random.Generator) -> None:
    """A three-box car."""
    _car(layer, rng, [(0.16, 0.42), (0.32, 0.04), (0.66, 0.04), (0.84, 0.42)])


def draw_hatchback(layer: Layer, rng: np.random.Generator) -> None:
    """A car with a steep back."""
    _car(layer, rng, [(0.18, 0.42), (0.34, 0.02), (0.85, 0.05), (0.95, 0.42)])


def draw_van(layer: Layer, rng: np.random.Generator) -> None:
    """A delivery van: a tall box with a slanted nose."""
    h, w = layer.size
    colour = _paint_colour(rng)
    _shape(
        layer,
        [(0.01, 0.55), (0.13, 0.42), (0.24, 0.02), (0.98, 0.02), (0.99, 0.85), (0.01, 0.85)],
        colour,
    )
    _shape(layer, [(0.16, 0.42), (0.25, 0.1), (0.38, 0.1), (0.38, 0.42)], _GLASS)
    if chance(rng, 0.6):
        band = _paint_colour(rng)
        _shape(layer, [(0.42, 0.5), (0.99, 0.5), (0.99, 0.62), (0.42, 0.62)], band)
    for x in (0.4, 0.7):
        top, bottom = (x * w, 0.06 * h), (x * w, 0.82 * h)
        layer.paint(limb(layer.size, top, bottom, 0.8, 0.8), colour * np.float32(0.6))
    _shape(layer, [(0.01, 0.57), (0.05, 0.54), (0.06, 0.66), (0.01, 0.66)], (226, 220, 196))
    radius = min(0.15 * h, 0.12 * w)
    for x in (0.2, 0.8):
        _wheel(layer, x * w, h - radius, radius)
    _flipped(layer, rng)


def draw_bicycle(layer: Layer, rng: np.random.Generator) -> None:
    """Parked bicycles: two wheels, a frame and a basket, with much to see through."""
    h, w = layer.size
    colour, thick = _paint_colour(rng), max(0.018 * h, 1.2)
    radius = min(0.34 * h, 0.24 * w)
    low = h - radius
    rear, front = (radius + 1, low), (w - radius - 1, low)
    for x, y in (rear, front):
        outer = ellipse(layer.size, (x, y), radius, radius)
        if outer is not None:
            reach = np.hypot(outer.across, 2 * outer.along - 1)
            ring = outer.with_mask(outer.mask * np.clip((reach - 0.84) * 30, 0, 1))
            layer.paint(ring, _TYRE)
            spokes = outer.with_mask(outer.mask * 0.22)
            layer.paint(spokes, (120.0, 122.0, 126.0))
    crank, saddle, bar = (0.47 * w, low), (0.38 * w, 0.22 * h), (0.74 * w, 0.16 * h)
    for start, end in ((rear, crank), (rear, saddle), (crank, saddle), (crank, bar), (saddle, bar)):
        layer.paint(limb(layer.size, start, end, thick, thick), colour)
    layer.paint(limb(layer.size, bar, front, thick, thick), colour)
    seat = limb(layer.size, (0.31 * w, 0.19 * h), (0.44 * w, 0.19 * h), 0.035 * h, 0.025 * h)
    layer.paint(seat, _TYRE)
    _shape(layer, [(0.72, 0.08), (0.99, 0.08), (0.95, 0.4), (0.76, 0.4)], (112, 92, 66))
    _flipped(layer, rng)


def draw_scooter(layer: Layer, rng: np.random.Generator) -> None:
    """A parked motor scooter."""
    h, w = layer.size
    colour = _paint_colour(rng)
    radius = min(0.2 * h, 0.15 * w)
    for x in (0.2, 0.82):
        _wheel(layer, x * w, h - radius, radius)
    _shape(layer, [(0.06, 0.5), (0.46, 0.44), (0.52, 0.78), (0.3, 0.86), (0.08, 0.74)], colour)
    _shape(layer, [(0.46, 0.72), (0.72, 0.72), (0.72, 0.84), (0.4, 0.84)], colour * np.float32(0.7))
    _shape(layer, [(0.64, 0.84), (0.68, 0.16), (0.78, 0.14), (0.86, 0.72), (0.76, 0.84)], colour)
    _shape(layer, [(0.08, 0.42), (0.46, 0.36), (0.48, 0.46), (0.08, 0.52)], (38, 34, 34))
    layer.paint(
        limb(layer.size, (0.6 * w, 0.1 * h), (0.78 * w, 0.08 * h), 0.025 * h, 0.025 * h), _TYRE
    )
    _shape(layer, [(0.68, 0.14), (0.72, 0.0), (0.9, 0.0), (0.82, 0.14)], (150, 166, 176))
    layer.paint(ellipse(layer.size, (0.8 * w, 0.28 * h), 0.045 * w, 0.06 * h), (232, 226, 204))
    _flipped(layer, rng)
