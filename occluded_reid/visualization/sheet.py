"""Pictures: images with captions on a labelled sheet. Pure drawing; nothing is computed here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

TILE = (96, 192)  # width, height of an image on a sheet
MARGIN, FRAME, BAR = 10, 4, 10
CAPTION, TITLE = 15, 20

# Okabe and Ito's colours, told apart by colour-blind readers too
BLUE, ORANGE, GREEN, PURPLE, GREY, BLACK = (
    (0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (150, 150, 150), (30, 30, 30)
)  # fmt: skip
VISIBLE, HIDDEN = (86, 180, 233), (213, 94, 0)
BARS_LEGEND = (("visible", VISIBLE), ("hidden", HIDDEN))
PREDICTED_NOTE, TRUTH_NOTE = "numbers and bars: predicted visibility", "bars: true visible share"
LANDMARKS_NOTE = (
    "numbers below and bars from the top: predicted visibility of landmarks 1, 2, 3, ..."
)
BOTH_NOTE = "numbers and left bars: predicted visibility; right bars: true visible share"
# of growing lightness, even for colour-blind readers and in print
HEAT_COLOURS = matplotlib.colormaps["viridis"]
HEAT_SHARE = 0.65  # of the colour; the rest is the image, without its own colours
SCALE_WIDTH = 160


@dataclass
class Tile:
    """An image on a sheet.

    Attributes:
        image: (H, W, 3) uint8, RGB; scaled to the tile.
        captions: lines below it.
        colour: of its frame.
        visibility: (P,) in [0, 1], what a model says of each part, drawn as bars beside the image
            from top to bottom.
        stripes: the parts are stripes, whose numbers stand on the image; other parts have no such
            place, and theirs stand below it.
        truth: (P,) in [0, 1], the visible share of each part, drawn as bars to the right of those.
        heat: (h, w) in [0, 1], laid over the whole image as colours.
    """

    image: np.ndarray
    captions: Sequence[str] = ()
    colour: tuple[int, int, int] = GREY
    visibility: Sequence[float] | None = None
    truth: Sequence[float] | None = None
    heat: np.ndarray | None = None
    stripes: bool = True

    @property
    def bars(self) -> list[Sequence[float]]:
        """The columns of bars beside the image."""
        return [values for values in (self.visibility, self.truth) if values is not None]

    @property
    def lines(self) -> list[str]:
        """What is written below the image."""
        if self.stripes or self.visibility is None:
            return list(self.captions)
        numbers = [f"{score:.2f}" for score in self.visibility]
        return [
            *self.captions,
            *(" ".join(numbers[at : at + 3]) for at in range(0, len(numbers), 3)),
        ]


@dataclass
class Section:
    """A titled group of tiles.

    Attributes:
        title: above them.
        tiles: in rows, from left to right.
        columns: tiles to a row.
        legend: names of the frames' colours.
        scale: what the colours of ``Tile.heat`` tell, from 0 to 1.
    """

    title: str
    tiles: Sequence[Tile]
    columns: int
    legend: Sequence[tuple[str, tuple[int, int, int]]] = ()
    scale: str = ""


def sheet(sections: Sequence[Section]) -> Image.Image:
    """Draw sections below one another."""
    parts = [_draw_section(section) for section in sections]
    width = max(part.width for part in parts)
    whole = Image.new("RGB", (width, sum(part.height for part in parts) + MARGIN), "white")
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    return whole


def _draw_section(section: Section) -> Image.Image:
    lines = max((len(tile.lines) for tile in section.tiles), default=0)
    columns_of_bars = max((len(tile.bars) for tile in section.tiles), default=0)
    step_x = TILE[0] + 2 * FRAME + MARGIN + columns_of_bars * (BAR + 2)
    step_y = TILE[1] + 2 * FRAME + MARGIN + lines * CAPTION
    rows = -(-len(section.tiles) // section.columns)
    legend = [*section.legend, *_bars_legend(section.tiles)]
    explained = [MARGIN + TITLE + 6 + line * (CAPTION + 6) for line in range(3)]
    head = explained[bool(legend) + bool(section.scale)] + 2
    title_width = int(_font(TITLE).getlength(section.title))
    legend_width = sum(_entry_width(name) for name, _ in legend)
    scale_width = SCALE_WIDTH + _entry_width(section.scale)
    width = max(section.columns * step_x, title_width, legend_width, scale_width) + 2 * MARGIN
    part = Image.new("RGB", (width, head + rows * step_y), "white")
    draw = ImageDraw.Draw(part)
    draw.text((MARGIN, MARGIN), section.title, BLACK, _font(TITLE))
    _draw_legend(draw, legend, explained[0])
    if section.scale:
        _draw_scale(part, draw, section.scale, explained[bool(legend)])
    for number, tile in enumerate(section.tiles):
        row, column = divmod(number, section.columns)
        _draw_tile(part, draw, tile, MARGIN + column * step_x, head + row * step_y)
    return part


def _draw_tile(part: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, x: int, y: int) -> None:
    right, bottom = x + TILE[0] + 2 * FRAME, y + TILE[1] + 2 * FRAME
    draw.rectangle((x, y, right - 1, bottom - 1), fill=tile.colour)
    picture = Image.fromarray(tile.image).resize(TILE, Image.Resampling.BICUBIC)
    if tile.heat is not None:
        picture = _heated(picture, tile.heat)
    part.paste(picture, (x + FRAME, y + FRAME))
    for number, values in enumerate(tile.bars):
        _draw_bars(draw, values, right + 2 + number * (BAR + 2), y + FRAME)
    if tile.visibility is not None and tile.stripes:
        _write_scores(draw, tile.visibility, x + FRAME + 2, y + FRAME)
    for number, line in enumerate(tile.lines):
        draw.text((x, bottom + 1 + number * CAPTION), line, BLACK, _font(CAPTION - 2))


def _heated(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """Lay a map over a picture of which the lightness stays."""
    fine = Image.fromarray(heat.astype(np.float32)).resize(TILE, Image.Resampling.BILINEAR)
    colours = _as_image(HEAT_COLOURS(np.asarray(fine)))
    return Image.blend(picture.convert("L").convert("RGB"), colours, HEAT_SHARE)


def _as_image(colours: np.ndarray) -> Image.Image:
    """An image of the colours (H, W, 4) in [0, 1] that matplotlib's maps return."""
    return Image.fromarray((255 * colours[..., :3]).round().astype(np.uint8))


def _draw_bars(draw: ImageDraw.ImageDraw, visibility: Sequence[float], x: int, y: int) -> None:
    """One cell per part: its filled share is the visible one."""
    edges = np.linspace(y, y + TILE[1], len(visibility) + 1).astype(int)
    for value, top, bottom in zip(visibility, edges, edges[1:], strict=False):
        draw.rectangle((x, top + 1, x + BAR, bottom - 1), fill=HIDDEN)
        share = round(BAR * float(np.clip(value, 0, 1)))
        if share:
            draw.rectangle((x, top + 1, x + share, bottom - 1), fill=VISIBLE)


def _write_scores(draw: ImageDraw.ImageDraw, scores: Sequence[float], x: int, y: int) -> None:
    """Write each part's score in the middle of its stripe, legible on any picture."""
    tall = TILE[1] / len(scores)
    for number, score in enumerate(scores):
        middle = y + int((number + 0.5) * tall) - CAPTION // 2
        draw.text(
            (x, middle), f"{score:.2f}", "white", _font(CAPTION - 2),
            stroke_width=2, stroke_fill=BLACK,
        )  # fmt: skip


def _bars_legend(tiles: Sequence[Tile]) -> list[tuple[str, tuple[int, int, int] | None]]:
    predicted = any(tile.visibility is not None for tile in tiles)
    if any(tile.visibility is not None and not tile.stripes for tile in tiles):
        return [*BARS_LEGEND, (LANDMARKS_NOTE, None)]
    known = any(tile.truth is not None for tile in tiles)
    if not (predicted or known):
        return []
    note = BOTH_NOTE if predicted and known else PREDICTED_NOTE if predicted else TRUTH_NOTE
    return [*BARS_LEGEND, (note, None)]


def _draw_legend(
    draw: ImageDraw.ImageDraw, legend: Sequence[tuple[str, tuple[int, int, int] | None]], y: int
) -> None:
    x = MARGIN
    for name, colour in legend:
        if colour is not None:
            draw.rectangle((x, y + 3, x + 11, y + 14), fill=colour)
        draw.text((x + 16, y), name, BLACK, _font(CAPTION - 2))
        x += _entry_width(name)


def _draw_scale(part: Image.Image, draw: ImageDraw.ImageDraw, name: str, y: int) -> None:
    """A bar of all colours between their ends, 0 and 1."""
    font, size = _font(CAPTION - 2), (SCALE_WIDTH - 32, 12)
    draw.text((MARGIN, y), "0", BLACK, font)
    bar = _as_image(HEAT_COLOURS(np.linspace(0, 1, size[0]))[None])
    part.paste(bar.resize(size), (MARGIN + 12, y + 3))
    draw.text((MARGIN + 16 + size[0], y), "1", BLACK, font)
    draw.text((MARGIN + SCALE_WIDTH, y), name, BLACK, font)


def _entry_width(name: str) -> int:
    return 34 + int(_font(CAPTION - 2).getlength(name))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
