"""The page's HTML. Everything that comes from outside is escaped here."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime, timezone
from html import escape
from pathlib import Path

import numpy as np

from gallery_search.store.metadata import DATES_FROM
from gallery_search.web.search import Query, Result, SearchResult
from occluded_reid.visualization.sheet import BLUE, GRAY, HIDDEN, ORANGE, VISIBLE

COLORS = {"visible": VISIBLE, "hidden": HIDDEN, "gray": GRAY, "blue": BLUE}


def format_color(color: tuple[int, int, int]) -> str:
    """Return a color in CSS."""
    return "rgb({}, {}, {})".format(*color)


def build_style() -> str:
    """Return the style sheet, with the figures' color-blind safe colors."""
    colors = "".join(f"--{name}: {format_color(color)}; " for name, color in COLORS.items())
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    return f".search-page {{ {colors}}}\n{style}"


def wrap(content: str) -> str:
    """Wrap content so that the style sheet applies to it."""
    return f'<div class="search-page">{content}</div>'


def build_alert(text: str) -> str:
    """Return an error message."""
    return wrap(f'<p class="alert" role="alert">{escape(text)}</p>')


def build_notes(lines: Sequence[str]) -> str:
    """Return the description of the indexes."""
    return wrap("".join(f'<p class="note">{escape(line)}</p>' for line in lines))


def build_results(found: SearchResult) -> str:
    """Return the query, the legend and the ranked gallery images."""
    query, count = found.query, len(found.results)
    title = "<h2>Gallery images</h2>"
    if query is not None:
        image = _build_image(query.thumbnail, "Query image", query.visibility)
        title = (
            f'<div class="query"><h2>Query</h2><figure>{image}'
            f"<figcaption>{escape(query.name)}</figcaption></figure></div>"
            "<h2>Most similar gallery images</h2>"
        )
    noun = "image" if count == 1 else "images"
    status = f'<p class="note" role="status">{count or "No"} {noun} found.</p>'
    legend = _build_legend(found) if count else ""
    items = "".join(_build_result(each, rank, query) for rank, each in enumerate(found.results, 1))
    return wrap(f'{title}{status}{legend}<ol class="hits">{items}</ol>')


def format_time(time: float) -> str:
    """Return a date in UTC, or a frame number.

    >>> format_time(1717172400), format_time(451)
    ('2024-05-31 16:20:00', '451')
    """
    try:
        if time >= DATES_FROM:
            moment = datetime.fromtimestamp(time, timezone.utc)
            return moment.isoformat(" ", "seconds").removesuffix("+00:00")
    except (OverflowError, ValueError, OSError):
        pass  # beyond the calendar
    return f"{time:.15g}"


def _build_result(result: Result, rank: int, query: Query | None) -> str:
    hit, item = result.hit, result.hit.item
    name = f"Rank {rank}" if query else f"Image {rank}"
    time = None if item.time is None else format_time(item.time)
    values = (("identity", item.identity), ("camera", item.camera), ("time", time))
    details = [f"{label} {value}" for label, value in values if value is not None]
    frame, head = GRAY, f'<span class="rank">{rank}</span>'
    if query:
        head += f" &nbsp;similarity {hit.similarity:.3f}"
    if query and query.identity is not None and item.identity is not None:
        same = query.identity == item.identity
        frame = BLUE if same else ORANGE
        details.append("same identity" if same else "different identity")
    text = ", ".join(details)
    alt = f"{name}: {text}" if details else name
    return (
        f'<li><figure style="--frame: {format_color(frame)}">'
        f"{_build_image(result.thumbnail, alt, hit.visibility)}"
        f"<figcaption>{head}<br>{escape(text)}"
        f'<span class="path">{escape(item.path)}</span></figcaption>'
        f'<button type="button" data-key="{escape(result.key)}" '
        f'aria-label="{name}: search with this image">Search with this</button></figure></li>'
    )


def _build_image(content: bytes | None, alt: str, visibility: np.ndarray) -> str:
    image = '<p class="gone">image not available</p>'
    if content is not None:
        data = base64.b64encode(content).decode()
        image = f'<img src="data:image/jpeg;base64,{data}" alt="{escape(alt)}">'
    lines = "".join(
        f'<li><span>{part}</span><span class="bar" style="--share: {100 * value:.0f}%"></span>'
        f"<span>{value:.2f}</span></li>"
        for part, value in enumerate(visibility, start=1)
    )
    if lines:
        lines = f'<ul class="parts" aria-label="Visibility of each part">{lines}</ul>'
    return f'<div class="picture">{image}{lines}</div>'


def _build_legend(found: SearchResult) -> str:
    entries: list[tuple[str, tuple[int, int, int]]] = []
    words = ""
    if len(found.results[0].hit.visibility):
        entries += [("visible", VISIBLE), ("hidden", HIDDEN)]
        words = (
            "Bars and numbers: predicted visibility of each part, from 0 (hidden) to 1 (visible); "
            "FED's parts are stripes from top to bottom, AONet's are landmarks."
        )
    if found.query and found.query.identity is not None:
        entries += [("same identity", BLUE), ("different identity", ORANGE), ("unknown", GRAY)]
    swatches = "".join(
        f'<span class="swatch" style="background: {format_color(color)}"></span>{name}'
        for name, color in entries
    )
    return f'<p class="note">{words}{swatches}</p>'
