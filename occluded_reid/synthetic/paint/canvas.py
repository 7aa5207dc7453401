"""Shapes with soft edges, painted over each other on a layer.

H, W: size of the layer; h, w: size of the box around one shape. Points are (x, y) in pixels, y
pointing down. Colors are RGB in [0, 255]. A shape is a :class:`Region`: a coverage mask, and
coordinates *across* and *along* it, from which textures and shading are computed. A shape outside
of the layer is an empty region, which paints nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

Point = tuple[float, float]
Color = Sequence[float] | np.ndarray
Box = tuple[int, int, int, int]
"""Top, bottom, left, right; the empty box is all zeros."""
_SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class Region:
    """A shape's box on a layer, with its mask and coordinates."""

    top: int  # first row of the box
    left: int  # first column of the box
    mask: np.ndarray  # (h, w) float32 in [0, 1], the share of each pixel that the shape covers
    across: np.ndarray  # (h, w) float32 in [-1, 1], from the left edge to its right edge
    along: np.ndarray  # (h, w) float32 in [0, 1], from its upper end (or start) to its lower end

    def with_mask(self, mask: np.ndarray) -> Region:
        """Return the same box and coordinates with another mask."""
        return Region(self.top, self.left, mask, self.across, self.along)


def _make_region(box: Box, mask: np.ndarray, across: np.ndarray, along: np.ndarray) -> Region:
    across, along = (np.broadcast_to(each, mask.shape) for each in (across, along))
    return Region(box[0], box[2], mask.astype(np.float32, copy=False), across, along)


class Layer:
    """A transparent image: premultiplied color (H, W, 3) and alpha (H, W) in [0, 1]."""

    def __init__(self, height: int, width: int) -> None:
        self.size = self.height, self.width = height, width
        self.color = np.zeros((height, width, 3), np.float32)
        self.alpha = np.zeros((height, width), np.float32)

    def paint(
        self, region: Region, color: Color, opacity: float = 1.0, inside: bool = False
    ) -> None:
        """Lay a shape over what is there.

        Args:
            region: the shape.
            color: one RGB color, or (h, w, 3) with a color for each pixel of the box.
            opacity: 1 hides what lies below, 0 shows it.
            inside: paint only where the layer is opaque already, like a print on cloth.
        """
        h, w = region.mask.shape
        rows, columns = slice(region.top, region.top + h), slice(region.left, region.left + w)
        mask = region.mask if opacity == 1.0 else region.mask * np.float32(opacity)
        alpha = self.alpha[rows, columns]
        if inside:
            mask = mask * alpha
        below = self.color[rows, columns]
        below += (np.asarray(color, np.float32) - below) * mask[..., None]
        alpha += (1 - alpha) * mask

    def paint_box(self, x0: float, y0: float, x1: float, y1: float, color: Color) -> Region:
        """Paint a rectangle in fractions of width and height, a little darker at the bottom."""
        low, high = (x0 * self.width, y0 * self.height), (x1 * self.width, y1 * self.height)
        region = rectangle(self.size, low, high)
        shade = (1.06 - 0.2 * region.along)[..., None]
        self.paint(region, np.asarray(color, np.float32) * shade)
        return region

    def paint_tube(
        self, x0: float, y0: float, x1: float, y1: float, half: float, color: Color
    ) -> None:
        """Paint a bar between points in fractions; ``half`` is half its thickness in pixels."""
        start, end = (x0 * self.width, y0 * self.height), (x1 * self.width, y1 * self.height)
        region = limb(self.size, start, end, half, half)
        shade = (1.15 - 0.45 * np.abs(region.across + 0.3))[..., None]
        self.paint(region, np.asarray(color, np.float32) * shade)

    def composite(self, other: Layer, left: int, top: int) -> None:
        """Lay another layer over this one at a position that may lie partly outside."""
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + other.width, self.width), min(top + other.height, self.height)
        if x0 >= x1 or y0 >= y1:
            return
        cut = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
        below, alpha = self.color[y0:y1, x0:x1], self.alpha[y0:y1, x0:x1]
        below += other.color[cut] - below * other.alpha[cut][..., None]
        alpha += (1 - alpha) * other.alpha[cut]

    def to_rgba(self) -> np.ndarray:
        """Return (H, W, 4) uint8 with colors that are not premultiplied."""
        straight = self.color / np.maximum(self.alpha, 1e-3)[..., None]
        channels = np.dstack([straight, self.alpha * 255])
        return np.clip(np.rint(channels), 0, 255).astype(np.uint8)


def _clip_box(size: tuple[int, int], points: Sequence[Point], rx: float, ry: float) -> Box:
    # with the margins rx and ry
    xs, ys = zip(*points, strict=True)
    left, top = max(int(np.floor(min(xs) - rx)) - 1, 0), max(int(np.floor(min(ys) - ry)) - 1, 0)
    right = min(int(np.ceil(max(xs) + rx)) + 2, size[1])
    bottom = min(int(np.ceil(max(ys) + ry)) + 2, size[0])
    return (top, bottom, left, right) if top < bottom and left < right else (0, 0, 0, 0)


def _pixel_grid(box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates of the box's pixels: x as (1, w), y as (h, 1)."""
    top, bottom, left, right = box
    x, y = (np.arange(*ends, dtype=np.float32) for ends in ((left, right), (top, bottom)))
    return x[None, :], y[:, None]


def limb(
    size: tuple[int, int],
    start: Point,
    end: Point,
    start_radius: float,
    end_radius: float,
    flat_end: bool = False,
) -> Region:
    """Shape a tapered tube with round ends: an arm, a leg, a strap, a pole.

    ``start`` and ``end`` are the centers of its ends, the radii half its thickness there in pixels;
    ``flat_end`` cuts the second end straight, like a sleeve.
    """
    reach = max(start_radius, end_radius)
    box = _clip_box(size, (start, end), reach, reach)
    x, y = _pixel_grid(box)
    x, y = x - np.float32(start[0]), y - np.float32(start[1])
    dx, dy = np.float32(end[0] - start[0]), np.float32(end[1] - start[1])
    length = max(float(np.hypot(dx, dy)), 1e-3)
    raw = (x * dx + y * dy) / np.float32(length * length)
    along = np.clip(raw, 0, 1)
    radius = np.float32(start_radius) + np.float32(end_radius - start_radius) * along
    across = (x * dy - y * dx) / np.float32(length)
    distance = np.hypot(x - along * dx, y - along * dy)
    mask = np.clip(radius - distance + 0.5, 0, 1)
    if flat_end:
        mask = mask * np.clip((1 - raw) * np.float32(length) + 0.5, 0, 1)
    across = np.clip(across / np.maximum(radius, 0.5), -1, 1)
    return _make_region(box, mask, across, along)


def loft(
    size: tuple[int, int],
    levels: Sequence[float],
    centers: Sequence[float],
    half_widths: Sequence[float],
) -> Region:
    """Shape an upright outline by its width at some heights: a torso, a skirt, a head of hair.

    ``levels`` are the heights, y rising; ``centers`` x of the middle at each, all in pixels.
    """
    ends = (min(centers), levels[0]), (max(centers), levels[-1])
    box = _clip_box(size, ends, max(half_widths), 0)
    if not any(box) or levels[-1] <= levels[0]:
        return Region(0, 0, *(np.zeros((0, 0), np.float32) for _ in range(3)))
    x, y = _pixel_grid(box)
    rows = y[:, 0]
    center = np.interp(rows, levels, centers).astype(np.float32)[:, None]
    half = np.interp(rows, levels, half_widths).astype(np.float32)
    window = max(int((levels[-1] - levels[0]) / 14) | 1, 1)
    padded = np.pad(half, window // 2, mode="edge")
    half = np.convolve(padded, np.full(window, 1 / window, np.float32), "valid")[:, None]
    caps = np.clip(y - levels[0] + 0.5, 0, 1) * np.clip(levels[-1] - y + 0.5, 0, 1)
    mask = np.clip(half - np.abs(x - center) + 0.5, 0, 1) * caps
    across = np.clip((x - center) / np.maximum(half, 0.5), -1, 1)
    along = np.clip((y - levels[0]) / np.float32(levels[-1] - levels[0]), 0, 1)
    return _make_region(box, mask, across, along)


def ellipse(size: tuple[int, int], center: Point, radius_x: float, radius_y: float) -> Region:
    """Shape an upright ellipse."""
    radius_x, radius_y = max(radius_x, 0.3), max(radius_y, 0.3)
    box = _clip_box(size, (center,), radius_x, radius_y)
    x, y = _pixel_grid(box)
    across = (x - np.float32(center[0])) / np.float32(radius_x)
    down = (y - np.float32(center[1])) / np.float32(radius_y)
    distance = (1 - np.hypot(across, down)) * np.float32(min(radius_x, radius_y))
    mask = np.clip(distance + 0.5, 0, 1)
    return _make_region(box, mask, np.clip(across, -1, 1), np.clip(down * 0.5 + 0.5, 0, 1))


def polygon(size: tuple[int, int], points: Sequence[Point]) -> Region:
    """Shape a polygon; its coordinates run over its bounding box."""
    corners = np.asarray(points, np.float64)
    low, high = corners.min(axis=0), corners.max(axis=0)
    top, bottom, left, right = box = _clip_box(size, points, 0, 0)
    filled = np.zeros((bottom - top, right - left), np.uint8)
    shifted = np.rint((corners - (left, top)) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    if filled.size:
        cv2.fillPoly(filled, [shifted], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    x, y = _pixel_grid(box)
    across = np.clip(2 * (x - low[0]) / max(high[0] - low[0], 1e-3) - 1, -1, 1)
    along = np.clip((y - low[1]) / max(high[1] - low[1], 1e-3), 0, 1)
    mask = filled.astype(np.float32) / 255
    return _make_region(box, mask, across.astype(np.float32), along.astype(np.float32))


def rectangle(size: tuple[int, int], low: Point, high: Point) -> Region:
    """Shape an upright rectangle from its upper left to its lower right corner."""
    return polygon(size, [low, (high[0], low[1]), high, (low[0], high[1])])
