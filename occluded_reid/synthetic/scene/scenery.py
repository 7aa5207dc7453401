"""The place that each camera watches: a wide background out of which each picture cuts a window."""

from __future__ import annotations

import functools

import cv2
import numpy as np

from occluded_reid.synthetic.occluders.styles import occluder_layer
from occluded_reid.synthetic.paint.canvas import (
    Colour,
    Layer,
    Region,
    ellipse,
    limb,
    polygon,
    rectangle,
)
from occluded_reid.synthetic.paint.palette import CLOTH, RGB, nearby, pick
from occluded_reid.synthetic.paint.texture import noise
from occluded_reid.synthetic.streams import Stream, between, chance, stream

HEIGHT, WIDTH = 430, 1200
GROUND = 232
"""Row where the ground meets what stands behind it."""

_ASPHALT: RGB = (108, 108, 110)
_PAVING: RGB = (156, 150, 142)
_GRASS: RGB = (96, 118, 66)
_PLASTER: tuple[RGB, ...] = ((190, 178, 154), (166, 160, 154), (204, 196, 182), (148, 122, 104))


def _area(scene: Layer, low: tuple[float, float], high: tuple[float, float]) -> Region:
    region = rectangle(scene.size, low, high)
    assert region is not None, "an area of the scenery lies inside of it"
    return region


def _fill(
    scene: Layer, rng: np.random.Generator, top: float, bottom: float, colour: RGB, rough: float
) -> None:
    """A rough band over the whole width."""
    region = _area(scene, (0, top), (WIDTH, bottom))
    tone = 1 + rough * noise(rng, region.mask.shape, 2) + 0.06 * noise(rng, region.mask.shape, 64)
    base = np.array(nearby(rng, colour, 6), np.float32)
    scene.paint(region, base * (tone * (0.92 + 0.16 * region.along))[..., None])


def _line(
    scene: Layer, start: tuple[float, float], end: tuple[float, float], half: float, colour: Colour
) -> None:
    scene.paint(limb(scene.size, start, end, half, half), colour, 0.75)


def _box(scene: Layer, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
    scene.paint(rectangle(scene.size, (x0, y0), (x1, y1)), colour)


def _place(
    scene: Layer, rng: np.random.Generator, kind: str, box: tuple[float, float, float, float]
) -> None:
    """Stand one of the occluders into the background."""
    x0, y0, x1, y1 = (int(round(value)) for value in box)
    thing = occluder_layer(kind, rng, y1 - y0, x1 - x0, "training")
    left, right, bottom = max(x0, 0), min(x1, WIDTH), min(y1, HEIGHT)
    if left >= right:
        return
    cut = slice(0, bottom - y0), slice(left - x0, right - x0)
    below = scene.colour[y0:bottom, left:right]
    below += thing.colour[cut] * 0.92 - below * thing.alpha[cut][..., None]


def _steps(start: float, stop: float, step: float) -> list[float]:
    """Evenly spaced places, ``stop`` excluded."""
    return [float(place) for place in np.arange(start, stop, step)]


def _paving(scene: Layer, rng: np.random.Generator, colour: RGB, tile: float) -> None:
    """Slabs in perspective: cross joints closer with distance, and fanning long joints."""
    _fill(scene, rng, GROUND, HEIGHT + 2, colour, 0.04)
    joint = np.array(colour) * 0.72
    y, step = float(GROUND), tile * 0.25
    while y < HEIGHT:
        _line(scene, (0, y), (WIDTH, y), 0.6, joint)
        y, step = y + step, step * 1.22
    for x in _steps(-WIDTH, 2 * WIDTH, tile * 1.6):
        _line(scene, (x, GROUND), (x + (x - WIDTH / 2) * 0.35, HEIGHT), 0.6, joint)


def _facade(scene: Layer, rng: np.random.Generator, windows: bool) -> None:
    _fill(scene, rng, 0, GROUND, _PLASTER[int(rng.integers(len(_PLASTER)))], 0.03)
    _box(scene, 0, GROUND - 16, WIDTH, GROUND, (98, 94, 90))
    if not windows:
        return
    x = between(rng, 10, 60)
    while x < WIDTH:
        wide = between(rng, 56, 104)
        _box(scene, x - 5, 15, x + wide + 5, 145, (208, 204, 196))
        _box(scene, x, 20, x + wide, 140, (70 + between(rng, -20, 20), 82, 94))
        _line(scene, (x + wide / 2, 20), (x + wide / 2, 140), 1.6, (208, 204, 196))
        x += wide + between(rng, 40, 90)


def _street(scene: Layer, rng: np.random.Generator) -> None:
    _facade(scene, rng, windows=True)
    _fill(scene, rng, GROUND, HEIGHT + 2, _ASPHALT, 0.05)
    _box(scene, 0, GROUND, WIDTH, GROUND + 34, (168, 164, 158))
    _line(scene, (0, GROUND + 36), (WIDTH, GROUND + 36), 2.5, (126, 124, 120))
    for x in _steps(0, WIDTH, 170):
        marking = [(x, 356), (x + 80, 356), (x + 92, 366), (x + 8, 366)]
        scene.paint(polygon(scene.size, marking), (204, 204, 198), 0.8)
    for x in _steps(between(rng, 0, 200), WIDTH, 330):
        _place(scene, rng, "car", (x, GROUND - 66, x + 190, GROUND + 26))


def _brick(scene: Layer, rng: np.random.Generator) -> None:
    _fill(scene, rng, 0, GROUND, (146, 92, 74), 0.07)
    for row, y in enumerate(_steps(0, GROUND, 11)):
        _line(scene, (0, y), (WIDTH, y), 0.6, (172, 160, 148))
        for x in _steps((row % 2) * 14, WIDTH, 28):
            _line(scene, (x, y), (x, y + 11), 0.5, (172, 160, 148))
    for x in (180, 640, 1010):
        _box(scene, x, 60, x + 70, GROUND, nearby(rng, (72, 84, 92), 14))
    for x in (320, 820):
        _place(scene, rng, "board", (x, 50, x + 150, 150))
    _paving(scene, rng, _PAVING, 60)


def _shops(scene: Layer, rng: np.random.Generator) -> None:
    _fill(scene, rng, 0, GROUND, (120, 116, 112), 0.03)
    x = 0.0
    while x < WIDTH:
        wide = between(rng, 130, 230)
        _box(scene, x, 0, x + wide - 8, 34, pick(rng, CLOTH, 14))
        _box(scene, x + 20, 10, x + wide - 40, 24, (224, 220, 208))
        _box(scene, x + 8, 42, x + wide - 16, GROUND - 22, (96, 108, 114))
        for _ in range(5):
            spot = (between(rng, x + 18, x + wide - 26), between(rng, 70, 190))
            goods = ellipse(scene.size, spot, between(rng, 8, 24), between(rng, 10, 36))
            scene.paint(goods, pick(rng, CLOTH, 14), 0.75)
        shine = [(x + 20, GROUND - 22), (x + 70, 42), (x + 100, 42), (x + 50, GROUND - 22)]
        scene.paint(polygon(scene.size, shine), (206, 216, 222), 0.22)
        x += wide
    _paving(scene, rng, (170, 158, 146), 44)


def _park(scene: Layer, rng: np.random.Generator) -> None:
    _fill(scene, rng, 0, GROUND, (164, 184, 198), 0.01)
    for x in _steps(-60, WIDTH, 130):
        _place(scene, rng, "bush", (x, between(rng, 0, 70), x + 220, GROUND + 4))
    for x in _steps(between(rng, 20, 120), WIDTH, 230):
        _place(scene, rng, "trunk", (x, 0, x + 34, GROUND + 24))
    _fill(scene, rng, GROUND, HEIGHT + 2, _GRASS, 0.14)
    path = [(0, 300), (WIDTH, 270), (WIDTH, 392), (0, 420)]
    region = polygon(scene.size, path)
    if region is not None:
        sand = 1 + 0.05 * noise(rng, region.mask.shape, 2)
        scene.paint(region, np.array((182, 168, 140), np.float32) * sand[..., None])


def _corridor(scene: Layer, rng: np.random.Generator) -> None:
    _fill(scene, rng, 0, GROUND, (206, 202, 190), 0.01)
    _box(scene, 0, 150, WIDTH, 164, nearby(rng, (96, 128, 150), 12))
    _box(scene, 0, GROUND - 12, WIDTH, GROUND, (110, 106, 100))
    for x in _steps(between(rng, 40, 160), WIDTH, 260):
        _place(scene, rng, "pillar", (x + 150, 0, x + 190, GROUND + 16))
        _box(scene, x, 22, x + 84, GROUND, nearby(rng, (134, 100, 70), 10))
        _box(scene, x + 8, 32, x + 76, GROUND - 8, nearby(rng, (158, 122, 88), 8))
    _paving(scene, rng, (178, 180, 176), 52)
    shine = _area(scene, (0, GROUND), (WIDTH, HEIGHT))
    glow = np.clip(np.sin(shine.across * 26) - 0.4, 0, 1) * (1 - shine.along)
    scene.paint(shine.with_mask(glow.astype(np.float32)), (240, 240, 234), 0.35)


def _parking(scene: Layer, rng: np.random.Generator) -> None:
    _fill(scene, rng, 0, GROUND, (138, 148, 152), 0.02)
    _box(scene, 0, 80, WIDTH, GROUND, (124, 122, 118))
    _place(scene, rng, "bush", (0, 60, WIDTH, 160))
    for x in _steps(between(rng, -80, 0), WIDTH, 205):
        _place(scene, rng, "car", (x, GROUND - 92, x + 190, GROUND + 10))
    _fill(scene, rng, GROUND + 8, HEIGHT + 2, (92, 93, 97), 0.06)
    for x in _steps(-WIDTH, 2 * WIDTH, 205):
        _line(scene, (x, GROUND + 8), (x + (x - 600) * 0.3, HEIGHT), 2.6, (206, 204, 196))


def _platform(scene: Layer, rng: np.random.Generator) -> None:
    _fill(scene, rng, 0, GROUND, (78, 80, 84), 0.04)
    colour = pick(rng, CLOTH, 12)
    _box(scene, 0, 20, WIDTH, GROUND - 16, (190, 192, 192))
    _box(scene, 0, 150, WIDTH, 180, colour)
    for x in _steps(between(rng, 0, 60), WIDTH, 150):
        _box(scene, x, 44, x + 96, 132, (52, 60, 68))
    _paving(scene, rng, (134, 136, 138), 40)
    _box(scene, 0, GROUND + 12, WIDTH, GROUND + 26, (212, 184, 70))


def _square(scene: Layer, rng: np.random.Generator) -> None:
    _facade(scene, rng, windows=False)
    for x in _steps(between(rng, 0, 120), WIDTH, 210):
        _box(scene, x, 36, x + 92, GROUND, (72, 68, 66))
        scene.paint(ellipse(scene.size, (x + 46, 40), 46, 34), (72, 68, 66))
        if chance(rng, 0.6):
            _place(scene, rng, "bicycle", (x + 100, GROUND - 62, x + 200, GROUND + 14))
    _paving(scene, rng, (184, 170, 150), 72)
    for x in _steps(0, WIDTH, 240):
        _place(scene, rng, "pole", (x, 30, x + 12, GROUND + 34))


_PLACES = (_street, _brick, _shops, _park, _corridor, _parking, _platform, _square)
NUM_PLACES = len(_PLACES)


@functools.lru_cache(maxsize=16)
def scene(seed: int, camera: int) -> np.ndarray:
    """The background of one camera, (430, 1200, 3) uint8 RGB.

    Args:
        seed: the data set's seed.
        camera: its number from 1; each camera watches a place of its own.
    """
    rng = stream(seed, Stream.SCENE, camera)
    layer = Layer(HEIGHT, WIDTH)
    _PLACES[(camera - 1) % NUM_PLACES](layer, rng)
    picture = np.clip(layer.colour, 0, 255)
    return cv2.GaussianBlur(picture, (0, 0), 1.1).astype(np.uint8)
