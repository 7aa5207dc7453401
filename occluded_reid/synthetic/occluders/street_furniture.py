"""Umbrellas, poles, signs, pillars and doors as occluders.

Each drawing fills its layer; coordinates are fractions of its width and height.
"""

from __future__ import annotations

import numpy as np

from occluded_reid.synthetic.paint.canvas import Color, Layer, ellipse, limb, polygon, rectangle
from occluded_reid.synthetic.paint.palette import CLOTH, RGB, jitter_color, pick, pick_metal
from occluded_reid.synthetic.paint.texture import sample_noise
from occluded_reid.synthetic.streams import Rng, bernoulli, choose, uniform

_PLATES: tuple[RGB, ...] = ((168, 34, 36), (36, 72, 150), (222, 186, 50), (232, 232, 228))


def _paint_canopy(
    layer: Layer, colors: tuple[Color, Color], gores: int, low: float, scallop: float
) -> None:
    """Paint a dome of gores in two colors whose rim lies at ``low`` of the height."""
    h, w = layer.size
    dome = ellipse(layer.size, (0.5 * w, low * h), 0.5 * w, low * h)
    rim = 0.5 * (1 - scallop * np.abs(np.sin((dome.across + 1) * gores * np.pi / 2)))
    visible = np.clip((rim - dome.along) * h, 0, 1) * dome.mask
    widest = np.sqrt(np.maximum(1 - (2 * dome.along - 1) ** 2, 1e-3))
    sector = np.floor((np.clip(dome.across / widest, -0.999, 0.999) + 1) * gores / 2) % 2
    first, second = np.asarray(colors, np.float32)
    tint = first + (second - first) * sector[..., None]
    shade = (0.8 + 0.5 * dome.along + 0.12 * dome.across)[..., None]
    layer.paint(dome.with_mask(visible.astype(np.float32)), tint * shade)


def draw_umbrella(layer: Layer, rng: Rng) -> None:
    """Draw an open umbrella with its shaft."""
    layer.paint_tube(0.5, 0.3, 0.5, 1, max(0.012 * layer.width, 1), (60, 60, 62))
    color = np.array(pick(rng, CLOTH, 12), np.float32)
    _paint_canopy(layer, (color, color * 0.86), 7, 0.85, 0.14)


def draw_parasol(layer: Layer, rng: Rng) -> None:
    """Draw a two-colored café parasol with a fringe."""
    color = np.array(pick(rng, CLOTH, 12), np.float32)
    _paint_canopy(layer, (color, (226, 220, 206)), 9, 0.92, 0.08)
    layer.paint_box(0.06, 0.42, 0.94, 0.5, color * 0.7)


def draw_steel_pole(layer: Layer, rng: Rng) -> None:
    """Draw a lamp post with a thicker foot and a sticker."""
    h, w = layer.size
    color = pick_metal(rng)
    layer.paint_tube(0.5, 0, 0.5, 1, 0.36 * w, color)
    layer.paint_tube(0.5, 0.78, 0.5, 1.02, 0.5 * w, color * 0.9)
    y = uniform(rng, 0.3, 0.55)
    layer.paint_box(0.3, y, 0.7, y + 0.07, pick(rng, CLOTH, 12))


def draw_striped_pole(layer: Layer, rng: Rng) -> None:
    """Draw a square post painted in rings."""
    h, w = layer.size
    red, yellow = ((226, 224, 218), (202, 48, 42)), ((40, 40, 42), (222, 186, 44))
    colors, rings = yellow if bernoulli(rng, 0.5) else red, int(rng.integers(5, 10))
    for number in range(rings):
        layer.paint_box(0.08, number / rings, 0.92, (number + 1) / rings, colors[number % 2])
    side = rectangle(layer.size, (0.62 * w, 0), (0.92 * w, h))
    layer.paint(side, (16.0, 16.0, 20.0), 0.35, inside=True)


def draw_traffic_sign(layer: Layer, rng: Rng) -> None:
    """Draw a round or triangular sign on a post."""
    h, w = layer.size
    layer.paint_tube(0.5, 0, 0.5, 1, max(0.13 * w, 1.5), pick_metal(rng))
    plate, ring = _PLATES[int(rng.integers(1, 4))], _PLATES[0]
    radius = min(0.5 * w, 0.25 * h)
    center = (0.5 * w, radius + 0.1 * h)
    if bernoulli(rng, 0.6):
        layer.paint(ellipse(layer.size, center, radius, radius), ring)
        layer.paint(ellipse(layer.size, center, 0.76 * radius, 0.76 * radius), plate)
    else:
        for reach, color in ((radius, ring), (0.66 * radius, plate)):
            low = center[1] + 0.75 * reach
            points = [(center[0] - reach, low), (center[0] + reach, low)]
            layer.paint(polygon(layer.size, [*points, (center[0], center[1] - reach)]), color)
    layer.paint(ellipse(layer.size, center, 0.16 * radius, 0.4 * radius), (34, 34, 36))


def draw_street_sign(layer: Layer, rng: Rng) -> None:
    """Draw two or three square plates with text on a post, and a box below."""
    layer.paint_tube(0.5, 0, 0.5, 1, max(0.15 * layer.width, 1.5), pick_metal(rng))
    y = uniform(rng, 0.03, 0.1)
    for _ in range(int(rng.integers(2, 4))):
        color = choose(rng, _PLATES)
        height = uniform(rng, 0.14, 0.24)
        layer.paint_box(0.02, y, 0.98, y + height, color)
        ink = (34, 34, 38) if sum(color) > 400 else (230, 230, 226)
        for row in (0.3, 0.6):
            layer.paint_box(0.16, y + row * height, 0.84, y + (row + 0.14) * height, ink)
        y += height + 0.03
    layer.paint_box(0.12, 0.8, 0.88, 0.97, (110, 114, 112))


def draw_pillar(layer: Layer, rng: Rng) -> None:
    """Draw a round column of stone or concrete."""
    h, w = layer.size
    region = limb(layer.size, (0.5 * w, -h), (0.5 * w, 2 * h), 0.47 * w, 0.47 * w)
    base = choose(rng, ((184, 178, 166), (150, 150, 150), (120, 96, 84)))
    color = np.array(jitter_color(rng, base, 8))
    grain = 0.05 * sample_noise(rng, region.mask.shape, 8)
    shade = 1.12 - 0.5 * (region.across + 0.25) ** 2 + grain
    layer.paint(region, color.astype(np.float32) * shade[..., None])
    layer.paint_box(0, 0.93, 1, 1.02, color * 0.8)


def draw_door_frame(layer: Layer, rng: Rng) -> None:
    """Draw the leaf of an open door in its frame, with panels and a handle."""
    color = np.array(pick(rng, CLOTH, 12), np.float32) * 0.7 + 40
    layer.paint_box(0, -0.02, 1, 1.02, color)
    for y0, y1 in ((0.06, 0.42), (0.5, 0.92)):
        layer.paint_box(0.2, y0, 0.86, y1, color * 0.8)
        layer.paint_box(0.25, y0 + 0.02, 0.81, y1 - 0.02, color * 0.95)
    layer.paint_box(0, -0.02, 0.1, 1.02, (196, 192, 184))
    layer.paint_tube(0.88, 0.47, 0.98, 0.47, max(0.03 * layer.width, 1.2), (190, 186, 172))
