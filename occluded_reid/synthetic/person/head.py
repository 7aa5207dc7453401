"""Neck, face, hair and what is worn on the head."""

from __future__ import annotations

import numpy as np

from occluded_reid.synthetic.paint.canvas import ellipse, limb, loft, polygon
from occluded_reid.synthetic.person.figure import Figure

# Metres by which the hair stands out of the skull: (around, above).
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
    """The neck, which the collar covers in part."""
    neck, head = figure.joints["neck"], figure.joints["head"]
    radius = figure.px(0.054 * figure.look.body.limb**0.5)
    part = limb(figure.layer.size, head.point, (neck.x, neck.y + figure.px(0.02)), radius, radius)
    if part is not None:
        figure.layer.paint(part, figure.shaded(part, figure.look.skin) * np.float32(0.8))


def paint_hair_behind(figure: Figure) -> None:
    """Long hair that hangs behind a person who is seen from the front."""
    if figure.facing > -0.2:
        _paint_hanging_hair(figure)


def paint_head(figure: Figure) -> None:
    """Skull, face, hair, glasses, headwear."""
    look, size, head = figure.look, figure.layer.size, figure.joints["head"]
    half, tall = figure.px(look.body.head), figure.px(1.3 * look.body.head)
    turned = abs(np.sin(figure.yaw))
    wide = half * (1 + 0.16 * turned)
    hair = _VOLUME.get(look.hair_style)
    if hair is not None:
        around, above = figure.px(hair[0]), figure.px(hair[1])
        crown = ellipse(size, (head.x, head.y - above), wide + around, tall * 0.97 + 0.3 * above)
        figure.paint_plain(crown, look.hair, 0.09)
    else:
        figure.paint_plain(ellipse(size, head.point, wide, tall), look.skin)
    _paint_face(figure, wide, tall)
    if look.headwear is not None:
        _paint_headwear(figure, wide, tall)
    if figure.facing <= -0.2:
        _paint_hanging_hair(figure)


def _paint_face(figure: Figure, wide: float, tall: float) -> None:
    look, size, head = figure.look, figure.layer.size, figure.joints["head"]
    facing, side = figure.facing, float(np.sin(figure.yaw))
    if facing < -0.4:
        return
    narrow = 0.9 if facing > 0.3 else 0.9 - 0.45 * (0.3 - facing)
    centre = (head.x + side * wide * (1.02 - narrow * 0.9), head.y + 0.13 * tall)
    face = ellipse(size, centre, wide * narrow * 0.94, tall * 0.86)
    figure.paint_plain(face, look.skin)
    if facing < 0.97:
        ear = (head.x - side * wide * 0.18, head.y + 0.1 * tall)
        if facing < 0.6:
            figure.paint_plain(ellipse(size, ear, 0.14 * wide, 0.17 * tall), look.skin)
            figure.darken(ellipse(size, ear, 0.08 * wide, 0.1 * tall), 0.2)
    shift = head.x + side * wide * 0.62
    gap = 0.36 * wide * max(facing, 0.0)
    dark = (34.0, 26.0, 24.0)
    layer = figure.layer
    for sign in (-1, 1) if facing > 0.25 else (int(np.sign(side)),):
        x = shift + sign * gap
        socket = ellipse(size, (x, head.y + 0.02 * tall), 0.2 * wide, 0.075 * tall)
        layer.paint(socket, dark, 0.5, inside=True)
        brow = ellipse(size, (x, head.y - 0.12 * tall), 0.22 * wide, 0.04 * tall)
        layer.paint(brow, look.hair, 0.6, inside=True)
    nose = ellipse(size, (shift + 0.12 * wide * side, head.y + 0.26 * tall), 0.1 * wide, 0.1 * tall)
    figure.darken(nose, 0.16)
    mouth = ellipse(size, (shift, head.y + 0.52 * tall), 0.26 * wide * narrow, 0.045 * tall)
    layer.paint(mouth, (120.0, 54.0, 50.0), 0.55, inside=True)
    if look.beard:
        jaw = ellipse(size, (shift, head.y + 0.76 * tall), 0.56 * wide * narrow, 0.24 * tall)
        layer.paint(jaw, look.hair, 0.6, inside=True)
    if look.glasses:
        reach = 0.62 * wide * max(facing, 0.45)
        bar = limb(
            size,
            (shift - reach, head.y + 0.02 * tall),
            (shift + reach, head.y + 0.02 * tall),
            0.1 * tall,
            0.1 * tall,
        )
        layer.paint(bar, (22.0, 22.0, 26.0), 0.75, inside=True)


def _paint_hanging_hair(figure: Figure) -> None:
    """The part of the hair that hangs below the skull, or stands off it."""
    look, size, head = figure.look, figure.layer.size, figure.joints["head"]
    half, behind = figure.px(look.body.head), -float(np.sin(figure.yaw))
    style = look.hair_style
    if style in ("long", "bob"):
        reach = figure.px(0.34 if style == "long" else 0.155)
        wide = half * 1.22
        x = head.x + behind * half * 0.4
        levels = [head.y - half * 0.6, head.y, head.y + 0.6 * reach, head.y + reach]
        fall = loft(size, levels, [x, x, x, x], [0.8 * wide, wide, 1.05 * wide, 0.8 * wide])
        figure.paint_plain(fall, look.hair, 0.12)
    elif style == "ponytail":
        start = (head.x + behind * half * 1.1, head.y - 0.4 * half)
        end = (start[0] + behind * half * 0.5, start[1] + figure.px(0.25))
        tail = limb(size, start, end, 0.36 * half, 0.2 * half)
        figure.paint_plain(tail, look.hair, 0.1)
    elif style == "bun":
        centre = (head.x + behind * half * 1.1, head.y - 1.0 * half)
        figure.paint_plain(ellipse(size, centre, 0.52 * half, 0.5 * half), look.hair, 0.1)


def _paint_headwear(figure: Figure, wide: float, tall: float) -> None:
    look, size, head = figure.look, figure.layer.size, figure.joints["head"]
    colour, side = look.headwear_colour, float(np.sin(figure.yaw))
    brow = head.y - 0.3 * tall
    if look.headwear == "headscarf":
        if figure.facing < -0.4:
            figure.paint_plain(ellipse(size, head.point, wide * 1.12, tall * 1.08), colour, 0.1)
        levels = [head.y - tall * 1.08, head.y - 0.5 * tall, head.y + 0.2 * tall]
        half_widths = [0.3 * wide, 1.1 * wide, 0.0]
        figure.paint_plain(loft(size, levels[:2], [head.x] * 2, half_widths[:2]), colour, 0.1)
        wrap = ellipse(size, (head.x, head.y + 1.05 * tall), 1.05 * wide, 0.42 * tall)
        figure.paint_plain(wrap, colour, 0.1)
        return
    crown = loft(
        size,
        [head.y - 1.12 * tall, head.y - 0.9 * tall, brow],
        [head.x] * 3,
        [0.45 * wide, 0.95 * wide, 1.12 * wide],
    )
    figure.paint_plain(crown, colour, 0.05)
    if look.headwear == "beanie":
        figure.darken(
            limb(size, (head.x - wide, brow), (head.x + wide, brow), 0.09 * tall, 0.09 * tall), 0.3
        )
    elif look.headwear == "hat":
        figure.paint_plain(ellipse(size, (head.x, brow), 1.75 * wide, 0.17 * tall), colour)
    elif figure.facing > -0.5:
        tip = head.x + side * 1.75 * wide
        reach = 0.85 * wide * max(figure.facing, 0.25)
        peak = polygon(
            size,
            [
                (head.x - reach, brow - 0.08 * tall),
                (head.x + reach, brow - 0.08 * tall),
                (tip + reach * 0.8, brow + 0.16 * tall),
                (tip - reach * 0.8, brow + 0.16 * tall),
            ],
        )
        figure.paint_plain(peak, colour)
        figure.darken(peak, 0.25)
