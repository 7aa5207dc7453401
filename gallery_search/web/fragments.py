"""The page's HTML. Everything that comes from outside is escaped here."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime, timezone
from html import escape

import numpy as np

from gallery_search import Item
from gallery_search.web.search import Query, Result, SearchResult
from occluded_reid.visualization.sheet import BLUE, GRAY, HIDDEN, ORANGE, VISIBLE

DATES_FROM = 1e8  # seconds since 1970; smaller times are frame numbers

STYLE = """
.search-page { font-size: 1rem; line-height: 1.4; }
.search-page h2 { font-size: 1.2rem; font-weight: 700; margin: 1rem 0 .5rem; }
.search-page .note { font-size: .85rem; margin: .25rem 0; }
.search-page .alert { border: 2px solid HIDDEN; border-left-width: .75rem; padding: .75rem;
  border-radius: .25rem; }
.search-page ol, .search-page ul { list-style: none; margin: 0; padding: 0; }
.search-page .hits { display: grid; gap: .75rem; margin-top: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(min(13.5rem, 100%), 1fr)); }
.search-page figure { margin: 0; padding: .6rem; border: 1px solid GRAY; border-radius: .4rem;
  border-top: .4rem solid var(--frame, GRAY); display: flex; flex-direction: column; gap: .4rem;
  height: 100%; box-sizing: border-box; }
.search-page .query figure { max-width: 18rem; height: auto; }
.search-page .picture { display: flex; gap: .6rem; }
.search-page img, .search-page .gone { width: 6rem; height: 12rem; object-fit: contain;
  background: #e5e5e5; color: #1e1e1e; flex: none; margin: 0; }
.search-page .gone { display: flex; align-items: center; text-align: center; font-size: .85rem; }
.search-page .parts { flex: 1; display: flex; flex-direction: column;
  justify-content: space-around; gap: .1rem; font-variant-numeric: tabular-nums; }
.search-page .parts li { display: flex; gap: .3rem; align-items: center; font-size: .8rem;
  margin: 0; line-height: 1.1; }
.search-page .bar { flex: 1; min-width: 1.2rem; height: .8rem; border: 1px solid #1e1e1e;
  background: linear-gradient(90deg, VISIBLE var(--share), HIDDEN var(--share)); }
.search-page .swatch { display: inline-block; width: .9rem; height: .9rem; margin: 0 .3rem 0 .8rem;
  vertical-align: -.1rem; border: 1px solid #1e1e1e; }
.search-page figcaption { overflow-wrap: anywhere; flex: 1; }
.search-page .rank { font-weight: 700; }
.search-page .path { font-size: .8rem; display: block; }
.search-page button { font: inherit; padding: .45rem .6rem; border: 1px solid currentColor;
  border-radius: .3rem; cursor: pointer; background: transparent; color: inherit; width: 100%; }
.search-page button:hover, .search-page button:focus-visible { background: BLUE; color: white; }
.search-page :focus-visible { outline: 3px solid BLUE; outline-offset: 2px; }
@media (max-width: 40rem) {
  .search-page img, .search-page .gone { width: 4.5rem; height: 9rem; }
}
.search-page input[type=file] { width: 100%; min-height: 4.5rem; padding: .75rem; font: inherit;
  border: 2px dashed GRAY; border-radius: .4rem; box-sizing: border-box; }
"""


def format_color(color: tuple[int, int, int]) -> str:
    """Return a color in CSS."""
    return "rgb({}, {}, {})".format(*color)


def build_style() -> str:
    """Return the style sheet, with the figures' color-blind safe colors."""
    text = STYLE
    colors = {"VISIBLE": VISIBLE, "HIDDEN": HIDDEN, "GRAY": GRAY, "BLUE": BLUE}
    for name, color in colors.items():
        text = text.replace(name, format_color(color))
    return text


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
    query = found.query
    parts = []
    if query is None:
        parts.append("<h2>Gallery images</h2>")
    else:
        parts.append(f'<div class="query"><h2>Query</h2>{_build_query(query)}</div>')
        parts.append("<h2>Most similar gallery images</h2>")
    count, noun = len(found.results) or "No", "image" if len(found.results) == 1 else "images"
    parts.append(f'<p class="note" role="status">{count} {noun} found.</p>')
    if found.results:
        parts.append(_build_legend(found))
    items = (_build_result(each, rank, query) for rank, each in enumerate(found.results, start=1))
    parts.append(f'<ol class="hits">{"".join(items)}</ol>')
    return wrap("".join(parts))


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


def _build_query(query: Query) -> str:
    image = _build_image(query.thumbnail, "Query image", query.visibility)
    return f"<figure>{image}<figcaption>{escape(query.name)}</figcaption></figure>"


def _build_result(result: Result, rank: int, query: Query | None) -> str:
    item, details = result.item, _describe(result.item)
    name = f"Rank {rank}" if query else f"Image {rank}"
    frame, head = GRAY, f'<span class="rank">{rank}</span>'
    if result.similarity is not None:
        head += f" &nbsp;similarity {result.similarity:.3f}"
    if query and query.identity is not None and item.identity is not None:
        same = query.identity == item.identity
        frame = BLUE if same else ORANGE
        details = [*details, "same identity" if same else "different identity"]
    alt = ": ".join([name, ", ".join(details)]) if details else name
    return (
        f'<li><figure style="--frame: {format_color(frame)}">'
        f"{_build_image(result.thumbnail, alt, result.visibility)}"
        f"<figcaption>{head}<br>{escape(', '.join(details))}"
        f'<span class="path">{escape(item.path)}</span></figcaption>'
        f'<button type="button" data-key="{escape(result.key)}" '
        f'aria-label="{name}: search with this image">Search with this</button></figure></li>'
    )


def _describe(item: Item) -> list[str]:
    time = None if item.time is None else format_time(item.time)
    values = (("identity", item.identity), ("camera", item.camera), ("time", time))
    return [f"{name} {value}" for name, value in values if value is not None]


def _build_image(content: bytes | None, alt: str, visibility: np.ndarray) -> str:
    if content is None:
        image = '<p class="gone">image not available</p>'
    else:
        data = base64.b64encode(content).decode()
        image = f'<img src="data:image/jpeg;base64,{data}" alt="{escape(alt)}">'
    return f'<div class="picture">{image}{_build_parts(visibility)}</div>'


def _build_parts(visibility: np.ndarray) -> str:
    if not len(visibility):
        return ""
    lines = (
        f'<li><span>{part}</span><span class="bar" style="--share: {100 * value:.0f}%"></span>'
        f"<span>{value:.2f}</span></li>"
        for part, value in enumerate(visibility, start=1)
    )
    return f'<ul class="parts" aria-label="Visibility of each part">{"".join(lines)}</ul>'


def _build_legend(found: SearchResult) -> str:
    entries: list[tuple[str, tuple[int, int, int]]] = []
    words = ""
    if len(found.results[0].visibility):
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
