"""Fences, barriers, low walls and boards as occluders.

Each drawing fills its layer; coordinates are shares of its height and width.
"""

from __future__ import annotations

import numpy as np

from occluded_reid.synthetic.paint.canvas import Layer, Region, ellipse, limb, polygon, rectangle
from occluded_reid.synthetic.paint.palette import CLOTH, nearby, pick
from occluded_reid.synthetic.paint.panels import metal_colour, paint_box, paint_tube
from occluded_reid.synthetic.paint.texture import noise
from occluded_reid.synthetic.streams import between, chance


def draw_picket_fence(layer: Layer, rng: np.random.Generator) -> None:
    """Wooden boards side by side with narrow gaps."""
    h, w = layer.size
    colour = np.array(
        nearby(rng, ((150, 112, 76), (208, 204, 196), (96, 84, 72))[int(rng.integers(3))], 8)
    )
    count = max(int(w / (0.13 * h + 4)), 4)
    for y in (0.25, 0.75):
        paint_box(layer, 0, y - 0.04, 1, y + 0.04, colour * 0.7)
    for number in range(count):
        x = number / count
        tone = colour * between(rng, 0.86, 1.1)
        points = [
            (x, 0.08),
            (x + 0.42 / count, 0),
            (x + 0.84 / count, 0.08),
            (x + 0.84 / count, 1.01),
            (x, 1.01),
        ]
        region = polygon(layer.size, [(px * w, py * h) for px, py in points])
        if region is not None:
            grain = 1 + 0.07 * noise(rng, region.mask.shape, 2, 8)
            layer.paint(region, tone.astype(np.float32) * grain[..., None])


def draw_railing(layer: Layer, rng: np.random.Generator) -> None:
    """Iron bars between two rails; half of the view stays open."""
    h, w = layer.size
    colour = metal_colour(rng)
    count = max(int(w / (0.09 * h + 3)), 5)
    half = 0.26 * w / count
    for number in range(count + 1):
        paint_tube(
            layer, (number + 0.5) / (count + 1), 0.05, (number + 0.5) / (count + 1), 1, half, colour
        )
    for y in (0.06, 0.5, 0.92):
        paint_box(layer, 0, y - 0.035, 1, y + 0.035, colour * 0.9)


def draw_crowd_barrier(layer: Layer, rng: np.random.Generator) -> None:
    """A building-site barrier: closed panels in two colours on feet."""
    h, w = layer.size
    first, second = (
        ((206, 66, 40), (226, 222, 214)) if chance(rng, 0.6) else ((40, 84, 150), (218, 218, 214))
    )
    panels = max(int(round(w / (0.7 * h))), 2)
    for number in range(panels):
        colour = first if number % 2 else second
        region = paint_box(layer, number / panels, 0.0, (number + 1) / panels, 0.92, colour)
        if region is not None:
            grime = 14 * noise(rng, region.mask.shape, 16)
            layer.paint(region, np.asarray(colour, np.float32) + grime[..., None], 0.5)
        paint_box(
            layer, number / panels + 0.03, 0.34, (number + 1) / panels - 0.03, 0.42, (84, 84, 84)
        )
    for number in range(panels + 1):
        paint_box(layer, number / panels - 0.02, 0.88, number / panels + 0.02, 1.01, (60, 60, 62))


def _masonry(layer: Layer, rng: np.random.Generator, colour: np.ndarray) -> Region | None:
    h, w = layer.size
    region = rectangle(layer.size, (0, 0), (w, h + 2))
    if region is not None:
        rough = (
            1 + 0.05 * noise(rng, region.mask.shape, 4) + 0.05 * noise(rng, region.mask.shape, 32)
        )
        layer.paint(region, colour * (rough * (1.08 - 0.2 * region.along))[..., None])
    return region


def draw_brick_wall(layer: Layer, rng: np.random.Generator) -> None:
    """A low wall of bricks with a stone on top."""
    h, w = layer.size
    _masonry(layer, rng, np.array(nearby(rng, (148, 84, 66), 9), np.float32))
    course = max(0.085 * h, 5.0)
    mortar = (176.0, 168.0, 158.0)
    for row in range(int(h / course) + 1):
        y = row * course + 0.1 * h
        layer.paint(limb(layer.size, (0, y), (w, y), 0.7, 0.7), mortar, 0.7)
        for x in np.arange((row % 2) * course * 1.2, w, course * 2.4):
            layer.paint(limb(layer.size, (x, y), (x, y + course), 0.6, 0.6), mortar, 0.7)
    paint_box(layer, 0, 0, 1, 0.1, (178, 174, 166))


def draw_concrete_wall(layer: Layer, rng: np.random.Generator) -> None:
    """A plastered parapet with stains, joints and sometimes graffiti."""
    h, w = layer.size
    colour = np.array(
        nearby(rng, ((168, 166, 160), (196, 182, 156), (120, 124, 130))[int(rng.integers(3))], 7)
    )
    _masonry(layer, rng, colour.astype(np.float32))
    for x in np.arange(between(rng, 0.1, 0.5), 1, 0.55):
        layer.paint(limb(layer.size, (x * w, 0), (x * w, h), 0.8, 0.8), (70, 70, 70), 0.6)
    if chance(rng, 0.5):
        ink, x, y = pick(rng, CLOTH), between(rng, 0.1, 0.3) * w, 0.5 * h
        for _ in range(6):
            end = (x + between(rng, 0.04, 0.14) * w, between(rng, 0.3, 0.75) * h)
            layer.paint(limb(layer.size, (x, y), end, 0.025 * h, 0.025 * h), ink, 0.8)
            x, y = end
    paint_box(layer, 0, 0, 1, 0.07, colour * 1.12)


def draw_poster_board(layer: Layer, rng: np.random.Generator) -> None:
    """An advertising board with a picture and lines of text."""
    h, w = layer.size
    paint_box(layer, 0, 0, 1, 1.02, (64, 66, 70))
    ground = np.array(pick(rng, CLOTH, 14), np.float32)
    paint_box(layer, 0.05, 0.05, 0.95, 0.95, ground * 0.5 + 110)
    for _ in range(3):
        centre = (between(rng, 0.2, 0.8) * w, between(rng, 0.2, 0.55) * h)
        layer.paint(
            ellipse(layer.size, centre, between(rng, 0.1, 0.26) * w, between(rng, 0.08, 0.2) * h),
            pick(rng, CLOTH, 14),
        )
    for y in (0.68, 0.76, 0.84):
        paint_box(layer, 0.12, y, between(rng, 0.5, 0.88), y + 0.035, (40, 40, 44))


def draw_striped_board(layer: Layer, rng: np.random.Generator) -> None:
    """A warning board with slanted stripes."""
    h, w = layer.size
    first, second = (((200, 44, 40), (228, 226, 220)), ((222, 184, 40), (36, 36, 38)))[
        int(chance(rng, 0.4))
    ]
    region = rectangle(layer.size, (0, 0), (w, h + 2))
    if region is None:
        return
    slope = region.across * (w / (2 * h)) + region.along
    stripes = np.clip(0.5 + 5 * np.sin(slope * between(rng, 12, 20)), 0, 1)[..., None]
    ends = np.asarray(first, np.float32), np.asarray(second, np.float32)
    dirt = 1 + 0.05 * noise(rng, region.mask.shape, 8)
    layer.paint(region, (ends[0] + (ends[1] - ends[0]) * stripes) * dirt[..., None])
    for y in (0.0, 0.96):
        paint_box(layer, 0, y, 1, y + 0.04, (96, 98, 100))
