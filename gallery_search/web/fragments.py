"""The page's own pieces of HTML. Every word that comes from outside is escaped here."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime, timezone
from html import escape

import numpy as np

from gallery_search import Item
from gallery_search.web.search import Answer, Query, Shown
from occluded_reid.visualization.sheet import BLUE, GREY, HIDDEN, ORANGE, VISIBLE

DATES_FROM = 1e8  # seconds since 1970; below stand the numbers of frames

STYLE = """
.search-page { font-size: 1rem; line-height: 1.4; }
.search-page h2 { font-size: 1.2rem; font-weight: 700; margin: 1rem 0 .5rem; }
.search-page .note { font-size: .85rem; margin: .25rem 0; }
.search-page .alert { border: 2px solid HIDDEN; border-left-width: .75rem; padding: .75rem;
  border-radius: .25rem; }
.search-page ol, .search-page ul { list-style: none; margin: 0; padding: 0; }
.search-page .hits { display: grid; gap: .75rem; margin-top: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(min(13.5rem, 100%), 1fr)); }
.search-page figure { margin: 0; padding: .6rem; border: 1px solid GREY; border-radius: .4rem;
  border-top: .4rem solid var(--frame, GREY); display: flex; flex-direction: column; gap: .4rem;
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
  border: 2px dashed GREY; border-radius: .4rem; box-sizing: border-box; }
"""


def css(colour: tuple[int, int, int]) -> str:
    """A colour as a style sheet writes it."""
    return "rgb({}, {}, {})".format(*colour)


def style() -> str:
    """The style sheet, with the colours of the figures, told apart by colour-blind readers too."""
    text = STYLE
    for name, colour in (
        ("VISIBLE", VISIBLE),
        ("HIDDEN", HIDDEN),
        ("GREY", GREY),
        ("BLUE", BLUE),
    ):
        text = text.replace(name, css(colour))
    return text


def page_part(content: str) -> str:
    """Wrap content so that the style sheet applies to it."""
    return f'<div class="search-page">{content}</div>'


def alert(text: str) -> str:
    """A message in words."""
    return page_part(f'<p class="alert" role="alert">{escape(text)}</p>')


def notes(lines: Sequence[str]) -> str:
    """What is searched."""
    return page_part("".join(f'<p class="note">{escape(line)}</p>' for line in lines))


def answer(found: Answer) -> str:
    """The query, the legend and the gallery images, ranked."""
    query = found.query
    parts = []
    if query is None:
        parts.append("<h2>Pictures of the gallery</h2>")
    else:
        parts.append(f'<div class="query"><h2>Asked with</h2>{_query(query)}</div>')
        parts.append("<h2>Most alike in the gallery</h2>")
    count, noun = len(found.shown) or "No", "picture" if len(found.shown) == 1 else "pictures"
    parts.append(f'<p class="note" role="status">{count} {noun} found.</p>')
    if found.shown:
        parts.append(_legend(found))
    shown = (_shown(one, rank, query) for rank, one in enumerate(found.shown, start=1))
    parts.append(f'<ol class="hits">{"".join(shown)}</ol>')
    return page_part("".join(parts))


def written_time(time: float) -> str:
    """A time as a reader knows it: a date, UTC, or the number of a frame."""
    try:
        if time >= DATES_FROM:
            moment = datetime.fromtimestamp(time, timezone.utc)
            return moment.isoformat(" ", "seconds").removesuffix("+00:00")
    except (OverflowError, ValueError, OSError):
        pass  # no year that has a name
    return f"{time:.15g}"


def _query(query: Query) -> str:
    picture = _picture(query.thumbnail, "The picture that was asked with", query.visibility)
    return f"<figure>{picture}<figcaption>{escape(query.name)}</figcaption></figure>"


def _shown(shown: Shown, rank: int, query: Query | None) -> str:
    item, about = shown.item, _about(shown.item)
    name = f"Rank {rank}" if query else f"Picture {rank}"
    frame, head = GREY, f'<span class="rank">{rank}</span>'
    if shown.similarity is not None:
        head += f" &nbsp;similarity {shown.similarity:.3f}"
    if query and query.identity is not None and item.identity is not None:
        same = query.identity == item.identity
        frame = BLUE if same else ORANGE
        about = [*about, "same identity" if same else "another identity"]
    alt = ": ".join([name, ", ".join(about)]) if about else name
    return (
        f'<li><figure style="--frame: {css(frame)}">'
        f"{_picture(shown.thumbnail, alt, shown.visibility)}"
        f"<figcaption>{head}<br>{escape(', '.join(about))}"
        f'<span class="path">{escape(item.path)}</span></figcaption>'
        f'<button type="button" data-key="{escape(shown.key)}" '
        f'aria-label="{name}: search with this picture">Search with this</button></figure></li>'
    )


def _about(item: Item) -> list[str]:
    time = None if item.time is None else written_time(item.time)
    known = (("identity", item.identity), ("camera", item.camera), ("time", time))
    return [f"{name} {value}" for name, value in known if value is not None]


def _picture(content: bytes | None, alt: str, visibility: np.ndarray) -> str:
    if content is None:
        shown = '<p class="gone">no picture to show</p>'
    else:
        data = base64.b64encode(content).decode()
        shown = f'<img src="data:image/jpeg;base64,{data}" alt="{escape(alt)}">'
    return f'<div class="picture">{shown}{_parts(visibility)}</div>'


def _parts(visibility: np.ndarray) -> str:
    if not len(visibility):
        return ""
    lines = (
        f'<li><span>{part}</span><span class="bar" style="--share: {100 * value:.0f}%"></span>'
        f"<span>{value:.2f}</span></li>"
        for part, value in enumerate(visibility, start=1)
    )
    return f'<ul class="parts" aria-label="Visibility of each part">{"".join(lines)}</ul>'


def _legend(found: Answer) -> str:
    entries: list[tuple[str, tuple[int, int, int]]] = []
    words = ""
    if len(found.shown[0].visibility):
        entries += [("visible", VISIBLE), ("hidden", HIDDEN)]
        words = (
            "Bars and numbers: how visible the model takes each part to be, 1 is fully visible "
            "(FED: stripes from top to bottom; AONet: landmarks)."
        )
    if found.query and found.query.identity is not None:
        entries += [("same identity", BLUE), ("another identity", ORANGE), ("unknown", GREY)]
    swatches = "".join(
        f'<span class="swatch" style="background: {css(colour)}"></span>{name}'
        for name, colour in entries
    )
    return f'<p class="note">{words}{swatches}</p>'
