"""Fences, barriers, low walls and boards as occluders.

Each drawing fills its layer; coordinates are fractions of its width and height.
"""

from __future__ import annotations

import numpy as np

from occluded_reid.synthetic.paint.canvas import Layer, ellipse, limb, polygon, rectangle
from occluded_reid.synthetic.paint.palette import CLOTH, jitter_color, pick, pick_metal
from occluded_reid.synthetic.paint.texture import sample_noise
from occluded_reid.synthetic.streams import Rng, bernoulli, choose, uniform


def draw_picket_fence(layer: Layer, rng: Rng) -> None:
    """Draw wooden boards side by side with narrow gaps."""
    h, w = layer.size
    base = choose(rng, ((150, 112, 76), (208, 204, 196), (96, 84, 72)))
    color = np.array(jitter_color(rng, base, 8))
    count = max(int(w / (0.13 * h + 4)), 4)
    for y in (0.25, 0.75):
        layer.paint_box(0, y - 0.04, 1, y + 0.04, color * 0.7)
    for number in range(count):
        x = number / count
        tone = color * uniform(rng, 0.86, 1.1)
        middle, end = x + 0.42 / count, x + 0.84 / count
        points = [(x, 0.08), (middle, 0), (end, 0.08), (end, 1.01), (x, 1.01)]
        region = polygon(layer.size, [(px * w, py * h) for px, py in points])
        grain = 1 + 0.07 * sample_noise(rng, region.mask.shape, 2, 8)
        layer.paint(region, tone.astype(np.float32) * grain[..., None])


def draw_railing(layer: Layer, rng: Rng) -> None:
    """Draw iron bars between rails; half of the view stays open."""
    h, w = layer.size
    color, count = pick_metal(rng), max(int(w / (0.09 * h + 3)), 5)
    for number in range(count + 1):
        x = (number + 0.5) / (count + 1)
        layer.paint_tube(x, 0.05, x, 1, 0.26 * w / count, color)
    for y in (0.06, 0.5, 0.92):
        layer.paint_box(0, y - 0.035, 1, y + 0.035, color * 0.9)


def draw_crowd_barrier(layer: Layer, rng: Rng) -> None:
    """Draw a building-site barrier: closed panels in two colors on feet."""
    h, w = layer.size
    orange, blue = ((226, 222, 214), (206, 66, 40)), ((218, 218, 214), (40, 84, 150))
    colors = orange if bernoulli(rng, 0.6) else blue
    panels = max(int(round(w / (0.7 * h))), 2)
    for number in range(panels):
        color, left, right = colors[number % 2], number / panels, (number + 1) / panels
        region = layer.paint_box(left, 0.0, right, 0.92, color)
        grime = 14 * sample_noise(rng, region.mask.shape, 16)
        layer.paint(region, np.asarray(color, np.float32) + grime[..., None], 0.5)
        layer.paint_box(left + 0.03, 0.34, right - 0.03, 0.42, (84, 84, 84))
    for number in range(panels + 1):
        layer.paint_box(number / panels - 0.02, 0.88, number / panels + 0.02, 1.01, (60, 60, 62))


def _paint_masonry(layer: Layer, rng: Rng, color: np.ndarray) -> None:
    h, w = layer.size
    region = rectangle(layer.size, (0, 0), (w, h + 2))
    fine, coarse = (sample_noise(rng, region.mask.shape, cell) for cell in (4, 32))
    rough = 1 + 0.05 * fine + 0.05 * coarse
    layer.paint(region, color * (rough * (1.08 - 0.2 * region.along))[..., None])


def draw_brick_wall(layer: Layer, rng: Rng) -> None:
    """Draw a low brick wall with a coping stone."""
    h, w = layer.size
    _paint_masonry(layer, rng, np.array(jitter_color(rng, (148, 84, 66), 9), np.float32))
    course = max(0.085 * h, 5.0)
    mortar = (176.0, 168.0, 158.0)
    for row in range(int(h / course) + 1):
        y = row * course + 0.1 * h
        layer.paint(limb(layer.size, (0, y), (w, y), 0.7, 0.7), mortar, 0.7)
        for x in np.arange((row % 2) * course * 1.2, w, course * 2.4):
            layer.paint(limb(layer.size, (x, y), (x, y + course), 0.6, 0.6), mortar, 0.7)
    layer.paint_box(0, 0, 1, 0.1, (178, 174, 166))


def draw_concrete_wall(layer: Layer, rng: Rng) -> None:
    """Draw a plastered parapet with stains, joints and sometimes graffiti."""
    h, w = layer.size
    base = choose(rng, ((168, 166, 160), (196, 182, 156), (120, 124, 130)))
    color = np.array(jitter_color(rng, base, 7))
    _paint_masonry(layer, rng, color.astype(np.float32))
    for x in np.arange(uniform(rng, 0.1, 0.5), 1, 0.55):
        layer.paint(limb(layer.size, (x * w, 0), (x * w, h), 0.8, 0.8), (70, 70, 70), 0.6)
    if bernoulli(rng, 0.5):
        ink, x, y = pick(rng, CLOTH), uniform(rng, 0.1, 0.3) * w, 0.5 * h
        for _ in range(6):
            end = (x + uniform(rng, 0.04, 0.14) * w, uniform(rng, 0.3, 0.75) * h)
            layer.paint(limb(layer.size, (x, y), end, 0.025 * h, 0.025 * h), ink, 0.8)
            x, y = end
    layer.paint_box(0, 0, 1, 0.07, color * 1.12)


def draw_poster_board(layer: Layer, rng: Rng) -> None:
    """Draw an advertising board with a poster and lines of text."""
    h, w = layer.size
    layer.paint_box(0, 0, 1, 1.02, (64, 66, 70))
    ground = np.array(pick(rng, CLOTH, 14), np.float32)
    layer.paint_box(0.05, 0.05, 0.95, 0.95, ground * 0.5 + 110)
    for _ in range(3):
        center = (uniform(rng, 0.2, 0.8) * w, uniform(rng, 0.2, 0.55) * h)
        radii = uniform(rng, 0.1, 0.26) * w, uniform(rng, 0.08, 0.2) * h
        layer.paint(ellipse(layer.size, center, *radii), pick(rng, CLOTH, 14))
    for y in (0.68, 0.76, 0.84):
        layer.paint_box(0.12, y, uniform(rng, 0.5, 0.88), y + 0.035, (40, 40, 44))


def draw_striped_board(layer: Layer, rng: Rng) -> None:
    """Draw a warning board with slanted stripes."""
    h, w = layer.size
    red, yellow = ((200, 44, 40), (228, 226, 220)), ((222, 184, 40), (36, 36, 38))
    first, second = np.asarray(yellow if bernoulli(rng, 0.4) else red, np.float32)
    region = rectangle(layer.size, (0, 0), (w, h + 2))
    slope = region.across * (w / (2 * h)) + region.along
    stripes = np.clip(0.5 + 5 * np.sin(slope * uniform(rng, 12, 20)), 0, 1)[..., None]
    dirt = 1 + 0.05 * sample_noise(rng, region.mask.shape, 8)
    layer.paint(region, (first + (second - first) * stripes) * dirt[..., None])
    for y in (0.0, 0.96):
        layer.paint_box(0, y, 1, y + 0.04, (96, 98, 100))
