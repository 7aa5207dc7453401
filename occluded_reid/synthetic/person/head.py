"""Neck, face, hair and headwear."""

from __future__ import annotations

import numpy as np

from occluded_reid.synthetic.paint.canvas import ellipse, limb, loft, polygon
from occluded_reid.synthetic.person.figure import Figure

# Meters by which the hair extends beyond the skull: (around, above).
_VOLUME = {
    "crop": (0.004, 0.006),
    "short": (0.012, 0.016),
    "curly": (0.034, 0.036),
    "bob": (0.02, 0.016),
    "long": (0.02, 0.016),
    "ponytail": (0.009, 0.01),
    "bun": (0.009, 0.01),
}


def paint_neck(figure: Figure) -> None:
    """Paint the neck, part of which the collar covers."""
    neck, head = figure.joints["neck"], figure.joints["head"]
    radius = figure.px(0.054 * figure.look.body.limb**0.5)
    part = limb(figure.layer.size, head.point, (neck.x, neck.y + figure.px(0.02)), radius, radius)
    figure.layer.paint(part, figure.shade(part, figure.look.skin) * np.float32(0.8))


def paint_hair_behind(figure: Figure) -> None:
    """Paint hanging hair, which a person seen from the front partly hides."""
    if figure.facing > -0.2:
        _paint_hanging_hair(figure)


def paint_head(figure: Figure) -> None:
    """Paint skull, face, hair, glasses and headwear."""
    look, size, head = figure.look, figure.layer.size, figure.joints["head"]
    rx = figure.px(look.body.head) * (1 + 0.16 * abs(np.sin(figure.yaw)))
    ry = figure.px(1.3 * look.body.head)
    if look.hair_style in _VOLUME:
        around, above = (figure.px(volume) for volume in _VOLUME[look.hair_style])
        crown = ellipse(size, (head.x, head.y - above), rx + around, ry * 0.97 + 0.3 * above)
        figure.paint_plain(crown, look.hair, 0.09)
    else:
        figure.paint_plain(ellipse(size, head.point, rx, ry), look.skin)
    _paint_face(figure, rx, ry)
    if look.headwear is not None:
        _paint_headwear(figure, rx, ry)
    if figure.facing <= -0.2:
        _paint_hanging_hair(figure)


def _paint_face(figure: Figure, rx: float, ry: float) -> None:
    """Paint the face on a skull with the radii ``rx`` and ``ry`` in pixels."""
    look, size, head = figure.look, figure.layer.size, figure.joints["head"]
    facing, side = figure.facing, float(np.sin(figure.yaw))
    if facing < -0.4:
        return
    narrow = 0.9 if facing > 0.3 else 0.9 - 0.45 * (0.3 - facing)
    center = (head.x + side * rx * (1.02 - narrow * 0.9), head.y + 0.13 * ry)
    face = ellipse(size, center, rx * narrow * 0.94, ry * 0.86)
    figure.paint_plain(face, look.skin)
    if facing < 0.6:
        ear = (head.x - side * rx * 0.18, head.y + 0.1 * ry)
        figure.paint_plain(ellipse(size, ear, 0.14 * rx, 0.17 * ry), look.skin)
        figure.darken(ellipse(size, ear, 0.08 * rx, 0.1 * ry), 0.2)
    shift = head.x + side * rx * 0.62
    gap = 0.36 * rx * max(facing, 0.0)
    dark = (34.0, 26.0, 24.0)
    layer = figure.layer
    for sign in (-1, 1) if facing > 0.25 else (int(np.sign(side)),):
        x = shift + sign * gap
        socket = ellipse(size, (x, head.y + 0.02 * ry), 0.2 * rx, 0.075 * ry)
        layer.paint(socket, dark, 0.5, inside=True)
        brow = ellipse(size, (x, head.y - 0.12 * ry), 0.22 * rx, 0.04 * ry)
        layer.paint(brow, look.hair, 0.6, inside=True)
    nose = ellipse(size, (shift + 0.12 * rx * side, head.y + 0.26 * ry), 0.1 * rx, 0.1 * ry)
    figure.darken(nose, 0.16)
    mouth = ellipse(size, (shift, head.y + 0.52 * ry), 0.26 * rx * narrow, 0.045 * ry)
    layer.paint(mouth, (120.0, 54.0, 50.0), 0.55, inside=True)
    if look.beard:
        jaw = ellipse(size, (shift, head.y + 0.76 * ry), 0.56 * rx * narrow, 0.24 * ry)
        layer.paint(jaw, look.hair, 0.6, inside=True)
    if look.glasses:
        reach = 0.62 * rx * max(facing, 0.45)
        y = head.y + 0.02 * ry
        bar = limb(size, (shift - reach, y), (shift + reach, y), 0.1 * ry, 0.1 * ry)
        layer.paint(bar, (22.0, 22.0, 26.0), 0.75, inside=True)


def _paint_hanging_hair(figure: Figure) -> None:
    """Paint the hair that hangs below the skull or sticks out from it."""
    look, size, head = figure.look, figure.layer.size, figure.joints["head"]
    half, behind = figure.px(look.body.head), -float(np.sin(figure.yaw))
    style = look.hair_style
    if style in ("long", "bob"):
        reach = figure.px(0.34 if style == "long" else 0.155)
        width = half * 1.22
        x = head.x + behind * half * 0.4
        levels = [head.y - half * 0.6, head.y, head.y + 0.6 * reach, head.y + reach]
        fall = loft(size, levels, [x, x, x, x], [0.8 * width, width, 1.05 * width, 0.8 * width])
        figure.paint_plain(fall, look.hair, 0.12)
    elif style == "ponytail":
        start = (head.x + behind * half * 1.1, head.y - 0.4 * half)
        end = (start[0] + behind * half * 0.5, start[1] + figure.px(0.25))
        tail = limb(size, start, end, 0.36 * half, 0.2 * half)
        figure.paint_plain(tail, look.hair, 0.1)
    elif style == "bun":
        center = (head.x + behind * half * 1.1, head.y - 1.0 * half)
        figure.paint_plain(ellipse(size, center, 0.52 * half, 0.5 * half), look.hair, 0.1)


def _paint_headwear(figure: Figure, rx: float, ry: float) -> None:
    look, size, head = figure.look, figure.layer.size, figure.joints["head"]
    color, side = look.headwear_color, float(np.sin(figure.yaw))
    brow = head.y - 0.3 * ry
    if look.headwear == "headscarf":
        if figure.facing < -0.4:
            figure.paint_plain(ellipse(size, head.point, rx * 1.12, ry * 1.08), color, 0.1)
        levels, half_widths = [head.y - ry * 1.08, head.y - 0.5 * ry], [0.3 * rx, 1.1 * rx]
        figure.paint_plain(loft(size, levels, [head.x] * 2, half_widths), color, 0.1)
        wrap = ellipse(size, (head.x, head.y + 1.05 * ry), 1.05 * rx, 0.42 * ry)
        figure.paint_plain(wrap, color, 0.1)
        return
    levels = [head.y - 1.12 * ry, head.y - 0.9 * ry, brow]
    crown = loft(size, levels, [head.x] * 3, [0.45 * rx, 0.95 * rx, 1.12 * rx])
    figure.paint_plain(crown, color, 0.05)
    if look.headwear == "beanie":
        rim = limb(size, (head.x - rx, brow), (head.x + rx, brow), 0.09 * ry, 0.09 * ry)
        figure.darken(rim, 0.3)
    elif look.headwear == "hat":
        figure.paint_plain(ellipse(size, (head.x, brow), 1.75 * rx, 0.17 * ry), color)
    elif figure.facing > -0.5:
        tip = head.x + side * 1.75 * rx
        reach = 0.85 * rx * max(figure.facing, 0.25)
        back, front = brow - 0.08 * ry, brow + 0.16 * ry
        corners = [(head.x - reach, back), (head.x + reach, back)]
        corners += [(tip + reach * 0.8, front), (tip - reach * 0.8, front)]
        peak = polygon(size, corners)
        figure.paint_plain(peak, color)
        figure.darken(peak, 0.25)
