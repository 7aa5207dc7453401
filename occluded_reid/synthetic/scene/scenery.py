"""The scene that each camera watches: a wide background; each image shows a window of it."""

from __future__ import annotations

import functools

import cv2
import numpy as np

from occluded_reid.synthetic.occluders.styles import paint_occluder
from occluded_reid.synthetic.paint.canvas import Color, Layer, ellipse, limb, polygon, rectangle
from occluded_reid.synthetic.paint.palette import CLOTH, RGB, jitter_color, pick
from occluded_reid.synthetic.paint.texture import sample_noise
from occluded_reid.synthetic.streams import Rng, Stream, bernoulli, choose, make_rng, uniform

HEIGHT, WIDTH = 430, 1200
GROUND = 232
"""Row where the ground meets what stands behind it."""

_ASPHALT: RGB = (108, 108, 110)
_PAVING: RGB = (156, 150, 142)
_GRASS: RGB = (96, 118, 66)
_PLASTER: tuple[RGB, ...] = ((190, 178, 154), (166, 160, 154), (204, 196, 182), (148, 122, 104))


def _fill(scene: Layer, rng: Rng, top: float, bottom: float, color: RGB, rough: float) -> None:
    """Fill a rough band over the whole width."""
    region = rectangle(scene.size, (0, top), (WIDTH, bottom))
    fine, coarse = (sample_noise(rng, region.mask.shape, cell) for cell in (2, 64))
    tone = 1 + rough * fine + 0.06 * coarse
    base = np.array(jitter_color(rng, color, 6), np.float32)
    scene.paint(region, base * (tone * (0.92 + 0.16 * region.along))[..., None])


def _draw_line(
    scene: Layer, start: tuple[float, float], end: tuple[float, float], half: float, color: Color
) -> None:
    scene.paint(limb(scene.size, start, end, half, half), color, 0.75)


def _fill_box(scene: Layer, x0: float, y0: float, x1: float, y1: float, color: Color) -> None:
    scene.paint(rectangle(scene.size, (x0, y0), (x1, y1)), color)


def _add(scene: Layer, rng: Rng, kind: str, box: tuple[float, float, float, float]) -> None:
    """Put an occluder into the background, a little darker than in front."""
    x0, y0, x1, y1 = (int(round(value)) for value in box)
    occluder = paint_occluder(kind, rng, y1 - y0, x1 - x0, "training")
    occluder.color *= 0.92
    scene.composite(occluder, x0, y0)


def _steps(start: float, stop: float, step: float) -> list[float]:
    return np.arange(start, stop, step, dtype=np.float64).tolist()


def _pave(scene: Layer, rng: Rng, color: RGB, tile: float) -> None:
    """Pave the ground in perspective: cross joints get closer with distance, long ones fan out."""
    _fill(scene, rng, GROUND, HEIGHT + 2, color, 0.04)
    joint = np.array(color) * 0.72
    y, step = float(GROUND), tile * 0.25
    while y < HEIGHT:
        _draw_line(scene, (0, y), (WIDTH, y), 0.6, joint)
        y, step = y + step, step * 1.22
    for x in _steps(-WIDTH, 2 * WIDTH, tile * 1.6):
        _draw_line(scene, (x, GROUND), (x + (x - WIDTH / 2) * 0.35, HEIGHT), 0.6, joint)


def _paint_facade(scene: Layer, rng: Rng, windows: bool) -> None:
    _fill(scene, rng, 0, GROUND, choose(rng, _PLASTER), 0.03)
    _fill_box(scene, 0, GROUND - 16, WIDTH, GROUND, (98, 94, 90))
    if not windows:
        return
    x = uniform(rng, 10, 60)
    while x < WIDTH:
        width = uniform(rng, 56, 104)
        _fill_box(scene, x - 5, 15, x + width + 5, 145, (208, 204, 196))
        _fill_box(scene, x, 20, x + width, 140, (70 + uniform(rng, -20, 20), 82, 94))
        _draw_line(scene, (x + width / 2, 20), (x + width / 2, 140), 1.6, (208, 204, 196))
        x += width + uniform(rng, 40, 90)


def _paint_street(scene: Layer, rng: Rng) -> None:
    _paint_facade(scene, rng, windows=True)
    _fill(scene, rng, GROUND, HEIGHT + 2, _ASPHALT, 0.05)
    _fill_box(scene, 0, GROUND, WIDTH, GROUND + 34, (168, 164, 158))
    _draw_line(scene, (0, GROUND + 36), (WIDTH, GROUND + 36), 2.5, (126, 124, 120))
    for x in _steps(0, WIDTH, 170):
        marking = [(x, 356), (x + 80, 356), (x + 92, 366), (x + 8, 366)]
        scene.paint(polygon(scene.size, marking), (204, 204, 198), 0.8)
    for x in _steps(uniform(rng, 0, 200), WIDTH, 330):
        _add(scene, rng, "car", (x, GROUND - 66, x + 190, GROUND + 26))


def _paint_brick(scene: Layer, rng: Rng) -> None:
    _fill(scene, rng, 0, GROUND, (146, 92, 74), 0.07)
    for row, y in enumerate(_steps(0, GROUND, 11)):
        _draw_line(scene, (0, y), (WIDTH, y), 0.6, (172, 160, 148))
        for x in _steps((row % 2) * 14, WIDTH, 28):
            _draw_line(scene, (x, y), (x, y + 11), 0.5, (172, 160, 148))
    for x in (180, 640, 1010):
        _fill_box(scene, x, 60, x + 70, GROUND, jitter_color(rng, (72, 84, 92), 14))
    for x in (320, 820):
        _add(scene, rng, "board", (x, 50, x + 150, 150))
    _pave(scene, rng, _PAVING, 60)


def _paint_shops(scene: Layer, rng: Rng) -> None:
    _fill(scene, rng, 0, GROUND, (120, 116, 112), 0.03)
    x = 0.0
    while x < WIDTH:
        width = uniform(rng, 130, 230)
        _fill_box(scene, x, 0, x + width - 8, 34, pick(rng, CLOTH, 14))
        _fill_box(scene, x + 20, 10, x + width - 40, 24, (224, 220, 208))
        _fill_box(scene, x + 8, 42, x + width - 16, GROUND - 22, (96, 108, 114))
        for _ in range(5):
            spot = (uniform(rng, x + 18, x + width - 26), uniform(rng, 70, 190))
            goods = ellipse(scene.size, spot, uniform(rng, 8, 24), uniform(rng, 10, 36))
            scene.paint(goods, pick(rng, CLOTH, 14), 0.75)
        shine = [(x + 20, GROUND - 22), (x + 70, 42), (x + 100, 42), (x + 50, GROUND - 22)]
        scene.paint(polygon(scene.size, shine), (206, 216, 222), 0.22)
        x += width
    _pave(scene, rng, (170, 158, 146), 44)


def _paint_park(scene: Layer, rng: Rng) -> None:
    _fill(scene, rng, 0, GROUND, (164, 184, 198), 0.01)
    for x in _steps(-60, WIDTH, 130):
        _add(scene, rng, "bush", (x, uniform(rng, 0, 70), x + 220, GROUND + 4))
    for x in _steps(uniform(rng, 20, 120), WIDTH, 230):
        _add(scene, rng, "trunk", (x, 0, x + 34, GROUND + 24))
    _fill(scene, rng, GROUND, HEIGHT + 2, _GRASS, 0.14)
    path = polygon(scene.size, [(0, 300), (WIDTH, 270), (WIDTH, 392), (0, 420)])
    sand = 1 + 0.05 * sample_noise(rng, path.mask.shape, 2)
    scene.paint(path, np.array((182, 168, 140), np.float32) * sand[..., None])


def _paint_corridor(scene: Layer, rng: Rng) -> None:
    _fill(scene, rng, 0, GROUND, (206, 202, 190), 0.01)
    _fill_box(scene, 0, 150, WIDTH, 164, jitter_color(rng, (96, 128, 150), 12))
    _fill_box(scene, 0, GROUND - 12, WIDTH, GROUND, (110, 106, 100))
    for x in _steps(uniform(rng, 40, 160), WIDTH, 260):
        _add(scene, rng, "pillar", (x + 150, 0, x + 190, GROUND + 16))
        _fill_box(scene, x, 22, x + 84, GROUND, jitter_color(rng, (134, 100, 70), 10))
        _fill_box(scene, x + 8, 32, x + 76, GROUND - 8, jitter_color(rng, (158, 122, 88), 8))
    _pave(scene, rng, (178, 180, 176), 52)
    shine = rectangle(scene.size, (0, GROUND), (WIDTH, HEIGHT))
    glow = np.clip(np.sin(shine.across * 26) - 0.4, 0, 1) * (1 - shine.along)
    scene.paint(shine.with_mask(glow.astype(np.float32)), (240, 240, 234), 0.35)


def _paint_parking(scene: Layer, rng: Rng) -> None:
    _fill(scene, rng, 0, GROUND, (138, 148, 152), 0.02)
    _fill_box(scene, 0, 80, WIDTH, GROUND, (124, 122, 118))
    _add(scene, rng, "bush", (0, 60, WIDTH, 160))
    for x in _steps(uniform(rng, -80, 0), WIDTH, 205):
        _add(scene, rng, "car", (x, GROUND - 92, x + 190, GROUND + 10))
    _fill(scene, rng, GROUND + 8, HEIGHT + 2, (92, 93, 97), 0.06)
    for x in _steps(-WIDTH, 2 * WIDTH, 205):
        _draw_line(scene, (x, GROUND + 8), (x + (x - 600) * 0.3, HEIGHT), 2.6, (206, 204, 196))


def _paint_platform(scene: Layer, rng: Rng) -> None:
    _fill(scene, rng, 0, GROUND, (78, 80, 84), 0.04)
    color = pick(rng, CLOTH, 12)
    _fill_box(scene, 0, 20, WIDTH, GROUND - 16, (190, 192, 192))
    _fill_box(scene, 0, 150, WIDTH, 180, color)
    for x in _steps(uniform(rng, 0, 60), WIDTH, 150):
        _fill_box(scene, x, 44, x + 96, 132, (52, 60, 68))
    _pave(scene, rng, (134, 136, 138), 40)
    _fill_box(scene, 0, GROUND + 12, WIDTH, GROUND + 26, (212, 184, 70))


def _paint_square(scene: Layer, rng: Rng) -> None:
    _paint_facade(scene, rng, windows=False)
    for x in _steps(uniform(rng, 0, 120), WIDTH, 210):
        _fill_box(scene, x, 36, x + 92, GROUND, (72, 68, 66))
        scene.paint(ellipse(scene.size, (x + 46, 40), 46, 34), (72, 68, 66))
        if bernoulli(rng, 0.6):
            _add(scene, rng, "bicycle", (x + 100, GROUND - 62, x + 200, GROUND + 14))
    _pave(scene, rng, (184, 170, 150), 72)
    for x in _steps(0, WIDTH, 240):
        _add(scene, rng, "pole", (x, 30, x + 12, GROUND + 34))


_SCENES = (
    _paint_street, _paint_brick, _paint_shops, _paint_park, _paint_corridor, _paint_parking,
    _paint_platform, _paint_square,
)  # fmt: skip


@functools.lru_cache(maxsize=64)
def render_background(seed: int, camera: int) -> np.ndarray:
    """Render the scene of a camera (numbered from 1), (430, 1200, 3) uint8 RGB."""
    rng = make_rng(seed, Stream.SCENE, camera)
    layer = Layer(HEIGHT, WIDTH)
    _SCENES[(camera - 1) % len(_SCENES)](layer, rng)
    return cv2.GaussianBlur(np.clip(layer.color, 0, 255), (0, 0), 1.1).astype(np.uint8)


def scatter_clutter(window: np.ndarray, most: int, rng: Rng) -> None:
    """Scatter fewer than ``most`` lines, boxes and arcs over (H, W, 3) float32, in place."""
    height, width = window.shape[:2]
    for _ in range(int(rng.integers(0, most))):
        gray = bernoulli(rng, 0.5)
        color = uniform(rng, 10, 235) + rng.normal(0, 8, 3) if gray else rng.uniform(10, 235, 3)
        x, y = int(uniform(rng, -0.1, 1.1) * width), int(uniform(rng, 0, 1) * height)
        a, b = uniform(rng, 0.02, 0.3) * width, uniform(rng, 0.02, 0.2) * height
        thickness = int(rng.integers(1, 5)) if bernoulli(rng, 0.6) else cv2.FILLED
        kind = int(rng.integers(0, 4))
        if kind == 0:
            end = x + int(rng.normal(0, 2) * a), y + int(rng.normal(0, 2) * b)
            cv2.line(window, (x, y), end, color.tolist(), max(thickness, 1), cv2.LINE_AA)
        elif kind == 1:
            end = x + int(a), y + int(b)
            cv2.rectangle(window, (x, y), end, color.tolist(), thickness, cv2.LINE_AA)
        else:
            axes, turn, arc = (int(a) + 1, int(b) + 1), uniform(rng, 0, 180), uniform(rng, 90, 360)
            cv2.ellipse(window, (x, y), axes, turn, 0, arc, color.tolist(), thickness, cv2.LINE_AA)
