"""Sheets of images with captions, bars and heat maps. Pure drawing: nothing is computed here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from occluded_reid.utils.terminal import escape

RGB = tuple[int, int, int]

TILE = (96, 192)  # width, height of an image on a sheet
MARGIN, FRAME, BAR = 10, 4, 10
CAPTION, TITLE = 15, 20

# Okabe and Ito's palette, which color-blind readers can tell apart
BLUE, ORANGE, GREEN, PURPLE, GRAY, BLACK = (
    (0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (150, 150, 150), (30, 30, 30)
)  # fmt: skip
VISIBLE, HIDDEN = (86, 180, 233), (213, 94, 0)
PREDICTED_NOTE, TRUTH_NOTE = "numbers and bars: predicted visibility", "bars: true visible fraction"
BOTH_NOTE = "numbers and left bars: predicted visibility; right bars: true visible fraction"
LANDMARKS_NOTE = "numbers below, and bars from the top: predicted visibility of landmarks 1, 2, ..."
HEAT_OPACITY = 0.65  # over the image, which is shown in gray
SCALE_WIDTH = 160


@dataclass
class Tile:
    """An image on a sheet, with a column of bars for each of ``visibility`` and ``truth``.

    The numbers of parts that are horizontal stripes are written on the image. Other parts have no
    fixed position, and their numbers are written below it.
    """

    image: np.ndarray  # (H, W, 3) uint8 RGB; scaled to the tile
    captions: Sequence[str] = ()  # lines below it
    color: RGB = GRAY  # of its frame
    visibility: Sequence[float] | None = None  # (P,) in [0, 1], predicted for each part
    truth: Sequence[float] | None = None  # (P,) in [0, 1], true visible fraction of each part
    heat: np.ndarray | None = None  # (h, w) in [0, 1]; drawn as colors over the whole image
    stripes: bool = True  # whether the parts are horizontal stripes

    @property
    def bars(self) -> list[Sequence[float]]:
        """The columns of bars beside the image."""
        return [values for values in (self.visibility, self.truth) if values is not None]

    @property
    def lines(self) -> list[str]:
        """The text below the image."""
        captions = [escape(caption, keep="") for caption in self.captions]
        if self.stripes or self.visibility is None:
            return captions
        numbers = [f"{score:.2f}" for score in self.visibility]
        rows = [" ".join(numbers[start : start + 3]) for start in range(0, len(numbers), 3)]
        return [*captions, *rows]


@dataclass
class Section:
    """A titled group of tiles."""

    title: str
    tiles: Sequence[Tile]  # in rows, from left to right
    columns: int  # tiles per row
    legend: Sequence[tuple[str, RGB]] = ()  # names and colors of the frames
    scale: str = ""  # meaning of the colors of Tile.heat, from 0 to 1


def draw_sheet(sections: Sequence[Section]) -> Image.Image:
    """Draw sections below one another.

    >>> tile = Tile(np.zeros((256, 128, 3), np.uint8), ["query"], BLUE, visibility=[1, 1, 0.5, 0])
    >>> draw_sheet([Section("One query", [tile], columns=1)]).size
    (389, 294)
    """
    parts = [_draw_section(section) for section in sections]
    ends = np.cumsum([0, *(part.height for part in parts)]).tolist()
    sheet = Image.new("RGB", (max(part.width for part in parts), ends[-1] + MARGIN), "white")
    for part, top in zip(parts, ends, strict=False):
        sheet.paste(part, (0, top))
    return sheet


def map_heat(heat: np.ndarray) -> Image.Image:
    """Color a map (H, W) in [0, 1], from dark to light so that it reads in print, too."""
    import matplotlib  # takes a second; sheets without heat maps do without

    colors = matplotlib.colormaps["viridis"](heat)[..., :3]
    return Image.fromarray((255 * colors).round().astype(np.uint8))


def _draw_section(section: Section) -> Image.Image:
    title = escape(section.title, keep="")
    lines = max((len(tile.lines) for tile in section.tiles), default=0)
    bar_columns = max((len(tile.bars) for tile in section.tiles), default=0)
    step_x = TILE[0] + 2 * FRAME + MARGIN + bar_columns * (BAR + 2)
    step_y = TILE[1] + 2 * FRAME + MARGIN + lines * CAPTION
    rows = -(-len(section.tiles) // section.columns)
    legend, note = [*section.legend], _explain_bars(section.tiles)
    if note:
        legend += [("visible", VISIBLE), ("hidden", HIDDEN)]
    legend_y = MARGIN + TITLE + 6
    scale_y = legend_y + bool(legend) * (CAPTION + 6)
    tiles_y = scale_y + bool(section.scale) * (CAPTION + 6) + 2
    width = 2 * MARGIN + max(
        section.columns * step_x,
        _measure_text(title, TITLE),
        sum(_measure_entry(name) for name, _ in legend) + _measure_text(note),
        SCALE_WIDTH + _measure_text(section.scale),
    )
    part = Image.new("RGB", (width, tiles_y + rows * step_y), "white")
    draw = ImageDraw.Draw(part)
    draw.text((MARGIN, MARGIN), title, BLACK, _load_font(TITLE))
    x = MARGIN
    for name, color in legend:
        draw.rectangle((x, legend_y + 3, x + 11, legend_y + 14), fill=color)
        draw.text((x + 16, legend_y), name, BLACK, _load_font())
        x += _measure_entry(name)
    draw.text((x, legend_y), note, BLACK, _load_font())
    if section.scale:
        _draw_scale(part, draw, section.scale, scale_y)
    for number, tile in enumerate(section.tiles):
        row, column = divmod(number, section.columns)
        _draw_tile(part, draw, tile, MARGIN + column * step_x, tiles_y + row * step_y)
    return part


def _draw_tile(part: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, x: int, y: int) -> None:
    right, bottom = x + TILE[0] + 2 * FRAME, y + TILE[1] + 2 * FRAME
    draw.rectangle((x, y, right - 1, bottom - 1), fill=tile.color)
    image = Image.fromarray(tile.image).resize(TILE, Image.Resampling.BICUBIC)
    if tile.heat is not None:
        heat = Image.fromarray(tile.heat.astype(np.float32))
        colors = map_heat(np.asarray(heat.resize(TILE, Image.Resampling.BILINEAR)))
        image = Image.blend(image.convert("L").convert("RGB"), colors, HEAT_OPACITY)
    part.paste(image, (x + FRAME, y + FRAME))
    for number, values in enumerate(tile.bars):
        _draw_bars(draw, values, right + 2 + number * (BAR + 2), y + FRAME)
    if tile.visibility is not None and tile.stripes:
        _write_scores(draw, tile.visibility, x + FRAME + 2, y + FRAME)
    for number, line in enumerate(tile.lines):
        draw.text((x, bottom + 1 + number * CAPTION), line, BLACK, _load_font())


def _draw_bars(draw: ImageDraw.ImageDraw, visibility: Sequence[float], x: int, y: int) -> None:
    """Draw one cell per part; its filled share is the visible one."""
    edges = np.linspace(y, y + TILE[1], len(visibility) + 1).astype(int)
    for value, top, bottom in zip(visibility, edges, edges[1:], strict=False):
        draw.rectangle((x, top + 1, x + BAR, bottom - 1), fill=HIDDEN)
        share = round(BAR * float(np.clip(value, 0, 1)))
        if share:
            draw.rectangle((x, top + 1, x + share, bottom - 1), fill=VISIBLE)


def _write_scores(draw: ImageDraw.ImageDraw, scores: Sequence[float], x: int, y: int) -> None:
    """Write each part's score in the middle of its stripe, legible on any image."""
    height = TILE[1] / len(scores)
    for number, score in enumerate(scores):
        at = x, y + int((number + 0.5) * height) - CAPTION // 2
        draw.text(at, f"{score:.2f}", "white", _load_font(), stroke_width=2, stroke_fill=BLACK)


def _explain_bars(tiles: Sequence[Tile]) -> str:
    predicted = any(tile.visibility is not None for tile in tiles)
    if any(tile.visibility is not None and not tile.stripes for tile in tiles):
        return LANDMARKS_NOTE
    if any(tile.truth is not None for tile in tiles):
        return BOTH_NOTE if predicted else TRUTH_NOTE
    return PREDICTED_NOTE if predicted else ""


def _draw_scale(part: Image.Image, draw: ImageDraw.ImageDraw, name: str, y: int) -> None:
    """Draw a bar of all colors between their ends, 0 and 1."""
    width, height = SCALE_WIDTH - 32, 12
    draw.text((MARGIN, y), "0", BLACK, _load_font())
    part.paste(map_heat(np.tile(np.linspace(0, 1, width), (height, 1))), (MARGIN + 12, y + 3))
    draw.text((MARGIN + 16 + width, y), "1", BLACK, _load_font())
    draw.text((MARGIN + SCALE_WIDTH, y), name, BLACK, _load_font())


def _measure_text(text: str, size: int = CAPTION - 2) -> int:
    return int(_load_font(size).getlength(text))


def _measure_entry(name: str) -> int:
    """Return the width of a legend's entry: a square, its name, and a gap."""
    return 34 + _measure_text(name)


def _load_font(size: int = CAPTION - 2) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
