"""Fences, walls, boards, umbrellas, poles, signs, pillars and doors as occluders.

Each drawing fills its layer; coordinates are shares of its height and width.
"""

from __future__ import annotations

import numpy as np

from occluded_reid.synthetic.canvas import Colour, Layer, Region, ellipse, limb, polygon, rectangle
from occluded_reid.synthetic.palette import CLOTH, RGB, nearby, pick
from occluded_reid.synthetic.randomness import between, chance
from occluded_reid.synthetic.texture import noise

_METAL: tuple[RGB, ...] = ((70, 74, 78), (134, 138, 142), (52, 62, 54), (176, 178, 176))
_PLATES: tuple[RGB, ...] = ((168, 34, 36), (36, 72, 150), (222, 186, 50), (232, 232, 228))


def _metal(rng: np.random.Generator) -> np.ndarray:
    return np.array(nearby(rng, _METAL[int(rng.integers(len(_METAL)))], 6), np.float32)


def _box(layer: Layer, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> Region | None:
    """A rectangle in shares of the layer, a little darker below."""
    h, w = layer.size
    region = rectangle(layer.size, (x0 * w, y0 * h), (x1 * w, y1 * h))
    if region is not None:
        shade = (1.06 - 0.2 * region.along)[..., None]
        layer.paint(region, np.asarray(colour, np.float32) * shade)
    return region


def _tube(
    layer: Layer, x0: float, y0: float, x1: float, y1: float, half: float, colour: Colour
) -> None:
    """A round bar between two points in shares, of a half thickness in pixels."""
    h, w = layer.size
    region = limb(layer.size, (x0 * w, y0 * h), (x1 * w, y1 * h), half, half)
    if region is not None:
        shade = (1.15 - 0.45 * np.abs(region.across + 0.3))[..., None]
        layer.paint(region, np.asarray(colour, np.float32) * shade)


def draw_picket_fence(layer: Layer, rng: np.random.Generator) -> None:
    """Wooden boards side by side with narrow gaps."""
    h, w = layer.size
    colour = np.array(
        nearby(rng, ((150, 112, 76), (208, 204, 196), (96, 84, 72))[int(rng.integers(3))], 8)
    )
    count = max(int(w / (0.13 * h + 4)), 4)
    for y in (0.25, 0.75):
        _box(layer, 0, y - 0.04, 1, y + 0.04, colour * 0.7)
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
    colour = _metal(rng)
    count = max(int(w / (0.09 * h + 3)), 5)
    half = 0.26 * w / count
    for number in range(count + 1):
        _tube(
            layer, (number + 0.5) / (count + 1), 0.05, (number + 0.5) / (count + 1), 1, half, colour
        )
    for y in (0.06, 0.5, 0.92):
        _box(layer, 0, y - 0.035, 1, y + 0.035, colour * 0.9)


def draw_crowd_barrier(layer: Layer, rng: np.random.Generator) -> None:
    """A building-site barrier: closed panels in two colours on feet."""
    h, w = layer.size
    first, second = (
        ((206, 66, 40), (226, 222, 214)) if chance(rng, 0.6) else ((40, 84, 150), (218, 218, 214))
    )
    panels = max(int(round(w / (0.7 * h))), 2)
    for number in range(panels):
        colour = first if number % 2 else second
        region = _box(layer, number / panels, 0.0, (number + 1) / panels, 0.92, colour)
        if region is not None:
            grime = 14 * noise(rng, region.mask.shape, 16)
            layer.paint(region, np.asarray(colour, np.float32) + grime[..., None], 0.5)
        _box(layer, number / panels + 0.03, 0.34, (number + 1) / panels - 0.03, 0.42, (84, 84, 84))
    for number in range(panels + 1):
        _box(layer, number / panels - 0.02, 0.88, number / panels + 0.02, 1.01, (60, 60, 62))


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
    _box(layer, 0, 0, 1, 0.1, (178, 174, 166))


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
    _box(layer, 0, 0, 1, 0.07, colour * 1.12)


def draw_poster_board(layer: Layer, rng: np.random.Generator) -> None:
    """An advertising board with a picture and lines of text."""
    h, w = layer.size
    _box(layer, 0, 0, 1, 1.02, (64, 66, 70))
    ground = np.array(pick(rng, CLOTH, 14), np.float32)
    _box(layer, 0.05, 0.05, 0.95, 0.95, ground * 0.5 + 110)
    for _ in range(3):
        centre = (between(rng, 0.2, 0.8) * w, between(rng, 0.2, 0.55) * h)
        layer.paint(
            ellipse(layer.size, centre, between(rng, 0.1, 0.26) * w, between(rng, 0.08, 0.2) * h),
            pick(rng, CLOTH, 14),
        )
    for y in (0.68, 0.76, 0.84):
        _box(layer, 0.12, y, between(rng, 0.5, 0.88), y + 0.035, (40, 40, 44))


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
        _box(layer, 0, y, 1, y + 0.04, (96, 98, 100))


def _canopy(
    layer: Layer, colours: tuple[Colour, Colour], gores: int, low: float, scallop: float
) -> None:
    """A dome of gores in two colours; its rim lies at the share ``low`` of the height."""
    h, w = layer.size
    dome = ellipse(layer.size, (0.5 * w, low * h), 0.5 * w, low * h)
    if dome is None:
        return
    rim = 0.5 * (1 - scallop * np.abs(np.sin((dome.across + 1) * gores * np.pi / 2)))
    visible = np.clip((rim - dome.along) * h, 0, 1) * dome.mask
    widest = np.sqrt(np.maximum(1 - (2 * dome.along - 1) ** 2, 1e-3))
    sector = np.floor((np.clip(dome.across / widest, -0.999, 0.999) + 1) * gores / 2) % 2
    ends = np.asarray(colours[0], np.float32), np.asarray(colours[1], np.float32)
    tint = ends[0] + (ends[1] - ends[0]) * sector[..., None]
    shade = (0.8 + 0.5 * dome.along + 0.12 * dome.across)[..., None]
    layer.paint(dome.with_mask(visible.astype(np.float32)), tint * shade)


def draw_umbrella(layer: Layer, rng: np.random.Generator) -> None:
    """An open umbrella with a stick."""
    _tube(layer, 0.5, 0.3, 0.5, 1, max(0.012 * layer.width, 1), (60, 60, 62))
    colour = np.array(pick(rng, CLOTH, 12), np.float32)
    _canopy(layer, (colour, colour * 0.86), 7, 0.85, 0.14)


def draw_parasol(layer: Layer, rng: np.random.Generator) -> None:
    """A two-coloured parasol of a café with a fringe."""
    colour = np.array(pick(rng, CLOTH, 12), np.float32)
    _canopy(layer, (colour, (226, 220, 206)), 9, 0.92, 0.08)
    _box(layer, 0.06, 0.42, 0.94, 0.5, colour * 0.7)


def draw_steel_pole(layer: Layer, rng: np.random.Generator) -> None:
    """A lamp post with a thicker foot and a sticker."""
    h, w = layer.size
    colour = _metal(rng)
    _tube(layer, 0.5, 0, 0.5, 1, 0.36 * w, colour)
    _tube(layer, 0.5, 0.78, 0.5, 1.02, 0.5 * w, colour * 0.9)
    y = between(rng, 0.3, 0.55)
    _box(layer, 0.3, y, 0.7, y + 0.07, pick(rng, CLOTH, 12))


def draw_striped_pole(layer: Layer, rng: np.random.Generator) -> None:
    """A square post painted in rings."""
    h, w = layer.size
    first, second = (((202, 48, 42), (226, 224, 218)), ((222, 186, 44), (40, 40, 42)))[
        int(chance(rng, 0.5))
    ]
    rings = int(rng.integers(5, 10))
    for number in range(rings):
        _box(
            layer, 0.08, number / rings, 0.92, (number + 1) / rings, first if number % 2 else second
        )
    side = rectangle(layer.size, (0.62 * w, 0), (0.92 * w, h))
    layer.paint(side, (16.0, 16.0, 20.0), 0.35, inside=True)


def draw_traffic_sign(layer: Layer, rng: np.random.Generator) -> None:
    """A round or triangular sign on a post."""
    h, w = layer.size
    _tube(layer, 0.5, 0, 0.5, 1, max(0.13 * w, 1.5), _metal(rng))
    plate, ring = _PLATES[int(rng.integers(1, 4))], _PLATES[0]
    radius = min(0.5 * w, 0.25 * h)
    centre = (0.5 * w, radius + 0.1 * h)
    if chance(rng, 0.6):
        layer.paint(ellipse(layer.size, centre, radius, radius), ring)
        layer.paint(ellipse(layer.size, centre, 0.76 * radius, 0.76 * radius), plate)
    else:
        for share, colour in ((1.0, ring), (0.66, plate)):
            reach = share * radius
            corners = [(-reach, 0.75 * reach), (reach, 0.75 * reach), (0.0, -reach)]
            points = [(centre[0] + x, centre[1] + y) for x, y in corners]
            layer.paint(polygon(layer.size, points), colour)
    layer.paint(ellipse(layer.size, centre, 0.16 * radius, 0.4 * radius), (34, 34, 36))


def draw_street_sign(layer: Layer, rng: np.random.Generator) -> None:
    """Two or three square plates with text on a post, and a box below."""
    _tube(layer, 0.5, 0, 0.5, 1, max(0.15 * layer.width, 1.5), _metal(rng))
    y = between(rng, 0.03, 0.1)
    for _ in range(int(rng.integers(2, 4))):
        colour = _PLATES[int(rng.integers(len(_PLATES)))]
        tall = between(rng, 0.14, 0.24)
        _box(layer, 0.02, y, 0.98, y + tall, colour)
        ink = (34, 34, 38) if sum(colour) > 400 else (230, 230, 226)
        for row in (0.3, 0.6):
            _box(layer, 0.16, y + row * tall, 0.84, y + (row + 0.14) * tall, ink)
        y += tall + 0.03
    _box(layer, 0.12, 0.8, 0.88, 0.97, (110, 114, 112))


def draw_pillar(layer: Layer, rng: np.random.Generator) -> None:
    """A round column of stone or concrete."""
    h, w = layer.size
    region = limb(layer.size, (0.5 * w, -h), (0.5 * w, 2 * h), 0.47 * w, 0.47 * w)
    if region is None:
        return
    colour = np.array(
        nearby(rng, ((184, 178, 166), (150, 150, 150), (120, 96, 84))[int(rng.integers(3))], 8)
    )
    shade = 1.12 - 0.5 * (region.across + 0.25) ** 2 + 0.05 * noise(rng, region.mask.shape, 8)
    layer.paint(region, colour.astype(np.float32) * shade[..., None])
    _box(layer, 0, 0.93, 1, 1.02, colour * 0.8)


def draw_door_frame(layer: Layer, rng: np.random.Generator) -> None:
    """The leaf of an open door in its frame, with panels and a handle."""
    colour = np.array(pick(rng, CLOTH, 12), np.float32) * 0.7 + 40
    _box(layer, 0, -0.02, 1, 1.02, colour)
    for y0, y1 in ((0.06, 0.42), (0.5, 0.92)):
        _box(layer, 0.2, y0, 0.86, y1, colour * 0.8)
        _box(layer, 0.25, y0 + 0.02, 0.81, y1 - 0.02, colour * 0.95)
    _box(layer, 0, -0.02, 0.1, 1.02, (196, 192, 184))
    _tube(layer, 0.88, 0.47, 0.98, 0.47, max(0.03 * layer.width, 1.2), (190, 186, 172))
