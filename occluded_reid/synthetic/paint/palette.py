"""Colors of clothes, skin, hair and bags, as frequent as on a street in daylight."""

from __future__ import annotations

import numpy as np

from occluded_reid.synthetic.streams import Rng, choose

RGB = tuple[float, float, float]
Table = dict[str, tuple[RGB, float]]
"""Name: (color, weight)."""

# fmt: off
# Dark, gray and blue cloth prevails.
CLOTH: Table = {
    "black": ((34, 33, 36), 12), "charcoal": ((62, 63, 68), 8),
    "gray": ((122, 123, 126), 7), "pale gray": ((176, 178, 180), 6), "white": ((222, 221, 217), 8),
    "navy": ((38, 46, 78), 9), "blue": ((54, 88, 150), 6), "pale blue": ((138, 168, 204), 4),
    "khaki": ((158, 138, 104), 4), "beige": ((196, 180, 152), 4), "brown": ((98, 70, 50), 4),
    "olive": ((88, 94, 62), 4), "green": ((52, 108, 70), 2), "red": ((162, 42, 44), 4),
    "maroon": ((102, 36, 50), 3), "pink": ((206, 140, 152), 2), "yellow": ((214, 182, 68), 1.5),
    "orange": ((206, 110, 48), 1.5), "purple": ((98, 68, 122), 2), "teal": ((44, 112, 118), 2),
}
TROUSER_CLOTH: Table = {
    "black": ((36, 35, 38), 13), "charcoal": ((64, 65, 70), 8), "gray": ((118, 120, 124), 8),
    "navy": ((42, 50, 80), 9), "denim": ((68, 90, 130), 12), "dark denim": ((46, 58, 88), 10),
    "pale denim": ((128, 148, 178), 6), "khaki": ((160, 140, 108), 6),
    "beige": ((190, 176, 150), 3), "brown": ((92, 68, 50), 3), "olive": ((86, 92, 64), 5),
    "white": ((212, 211, 206), 4), "maroon": ((98, 40, 52), 3),
}
SHOES: Table = {
    "black": ((30, 30, 32), 10), "gray": ((110, 112, 116), 3),
    "white": ((218, 218, 214), 6), "brown": ((96, 66, 44), 4), "tan": ((170, 128, 80), 2),
    "navy": ((42, 50, 84), 2), "red": ((164, 46, 48), 1),
}
BAGS: Table = {
    "black": ((32, 32, 36), 9), "gray": ((112, 114, 120), 4),
    "navy": ((42, 52, 92), 4), "brown": ((112, 76, 50), 4), "red": ((168, 44, 46), 3),
    "green": ((66, 110, 80), 2), "tan": ((182, 148, 104), 2), "blue": ((52, 96, 168), 3),
    "pink": ((202, 120, 140), 1), "yellow": ((212, 176, 60), 1), "white": ((216, 216, 212), 2),
}
SKIN: tuple[RGB, ...] = (
    (238, 200, 178), (224, 182, 152), (206, 160, 126), (180, 132, 98), (138, 96, 70),
    (98, 68, 52),
)
HAIR: tuple[RGB, ...] = (
    (28, 25, 25), (44, 34, 30), (72, 50, 38), (108, 78, 54), (168, 132, 84),
    (198, 168, 118), (138, 74, 44), (150, 148, 146), (204, 202, 198),
)
HAIR_WEIGHTS = (6, 6, 5, 3, 2, 1, 1, 2, 1)
_METAL: tuple[RGB, ...] = ((70, 74, 78), (134, 138, 142), (52, 62, 54), (176, 178, 176))
# fmt: on


def pick(rng: Rng, table: Table, jitter: float = 9) -> RGB:
    """Pick a color from a table such as :data:`CLOTH` by its weights, and jitter it."""
    colors, weights = zip(*table.values(), strict=True)
    return jitter_color(rng, choose(rng, colors, weights), jitter)


def jitter_color(rng: Rng, color: RGB, jitter: float) -> RGB:
    """Shift a color at random by about ``jitter`` gray levels in lightness, half of it in hue."""
    shift = rng.normal(0, jitter) + rng.normal(0, jitter * 0.45, 3)
    red, green, blue = (float(np.clip(c + s, 14, 242)) for c, s in zip(color, shift, strict=True))
    return red, green, blue


def pick_contrasting(rng: Rng, color: RGB, table: Table) -> RGB:
    """Pick a color from a table that stands out against the given one."""
    for _ in range(12):
        other = pick(rng, table)
        if float(np.abs(np.subtract(other, color)).sum()) > 130:
            return other
    lightness = sum(color) / 3
    return (228, 226, 220) if lightness < 128 else (30, 30, 34)


def pick_metal(rng: Rng) -> np.ndarray:
    """Pick the color of a painted, galvanized or rusty bar."""
    return np.array(jitter_color(rng, choose(rng, _METAL), 6), np.float32)
