"""The page, drawn by Gradio."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from gallery_search.web import MAX_HITS, fragments
from gallery_search.web.images import FORMATS, MAX_BYTES, RequestError
from gallery_search.web.search import GallerySearch, Query
from occluded_reid.utils.errors import UserError

logger = logging.getLogger(__name__)

TITLE = "Gallery search"
CONCURRENCY = 4  # requests at once; others wait
MAX_SESSIONS = 500  # the oldest are dropped
MAX_WAITING = 200  # further requests are refused
FAILED = "The gallery cannot be searched at the moment; see the server's log."

UPLOAD = f"""
<label for="crop"><strong>Query image</strong></label>
<input id="crop" type="file" accept="image/*" aria-describedby="crop-note">
<p class="note" id="crop-note">{", ".join(FORMATS)}, up to {MAX_BYTES // 2**20} MiB, cropped to the
person. Or choose "Search with this" below a gallery image.</p>
<p class="alert" role="alert" hidden></p>
"""


class Handlers:
    """Handle the page's events; an error becomes a message on the page."""

    def __init__(self, search: GallerySearch):
        self._search = search

    def upload(self, event: gr.EventData, *filters: Any) -> tuple[Query | None, str]:
        """Search with an uploaded file."""
        try:
            content = base64.b64decode(read_field(event, "content"), validate=True)
        except ValueError:  # also binascii.Error, which is one
            content = b""
        name = read_field(event, "name")
        return self._answer(lambda: self._search.query_from_upload(content, name), *filters)

    def choose(self, event: gr.EventData, *filters: Any) -> tuple[Query | None, str]:
        """Search with a gallery image."""
        key = read_field(event, "key")
        return self._answer(lambda: self._search.query_from_gallery(key), *filters)

    def browse(self, *filters: Any) -> tuple[Query | None, str]:
        """Drop the query and show some gallery images."""
        return self._answer(lambda: None, *filters)

    def repeat(self, query: Query | None, *filters: Any) -> tuple[Query | None, str]:
        """Search again, such as with other filters."""
        return self._answer(lambda: query, *filters)

    def start(self, top: int) -> tuple[Any, ...]:
        """Fill the filters and show some gallery images when the page opens."""
        search = self._search
        try:
            cameras, span, notes = search.cameras(), search.time_span(), search.describe()
        except UserError as error:
            logger.error(error)
            return (gr.skip(),) * 4 + (fragments.build_alert(FAILED),)
        times = [fragments.format_time(time) for time in span or ()]
        info = f"Times range from {times[0]} to {times[1]}." if times else None
        return (
            gr.CheckboxGroup(choices=cameras, visible=bool(cameras)),
            gr.Textbox(visible=bool(times), info=info),
            gr.Textbox(visible=bool(times)),
            fragments.build_notes(notes),
            self._answer(lambda: None, [], "", "", top)[1],
        )

    def _answer(self, query: Callable[[], Query | None], *filters: Any) -> tuple[Query | None, str]:
        cameras, since, until, top = filters
        try:
            found = self._search.search(
                query(), cameras=cameras or (), since=since or "", until=until or "", top=int(top)
            )
            return found.query, fragments.build_results(found)
        except RequestError as error:
            return gr.skip(), fragments.build_alert(str(error))
        except Exception as error:  # details stay in the log
            logger.error(error, exc_info=not isinstance(error, UserError))
            return gr.skip(), fragments.build_alert(FAILED)


def build_theme() -> gr.themes.Base:
    """Return a theme with system fonts and high contrast."""
    text, faint = "*neutral_950", "*neutral_700"
    return gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"]
    ).set(
        body_text_color_subdued=faint, block_info_text_color=faint, input_placeholder_color=faint,
        block_label_text_color=text, block_title_text_color=text, button_primary_text_color="white",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
    )  # fmt: skip


def read_field(event: gr.EventData, name: str) -> str:
    """Return a field of an event as text; clients may send anything."""
    value = event._data.get(name) if isinstance(event._data, dict) else None
    return value if isinstance(value, str) else ""


def read_script(name: str) -> str:
    """Return a script. The image is part of its request: no file is stored, none is served."""
    text = Path(__file__).with_name(f"{name}.js").read_text(encoding="utf-8")
    return text.replace("MAX_BYTES", str(MAX_BYTES)).replace("MAX_MIB", str(MAX_BYTES // 2**20))


def build_page(search: GallerySearch, top: int = 20) -> gr.Blocks:
    """Return the page; ``top`` is the initial number of images."""
    handlers = Handlers(search)
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.HTML(f"<style>{fragments.build_style()}</style><h1>{TITLE}</h1>")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                upload = gr.HTML(fragments.wrap(UPLOAD), js_on_load=read_script("upload"))
                cameras = gr.CheckboxGroup([], label="Cameras", info="None selected: all cameras.")
                since = gr.Textbox(label="Since", visible=False, max_length=40)
                until = gr.Textbox(label="Until", visible=False, max_length=40)
                hits = gr.Slider(1, MAX_HITS, top, step=1, label="Number of images")
                again = gr.Button("Search", variant="primary")
                browse = gr.Button("Show the gallery")
                notes = gr.HTML()
            with gr.Column(scale=3, min_width=300):
                results = gr.HTML(js_on_load=read_script("choose"), apply_default_css=False)
        query = gr.State(None)
        filters, shown = [cameras, since, until, hits], [query, results]
        options: dict[str, Any] = {"concurrency_limit": CONCURRENCY, "concurrency_id": "search"}
        to_top: dict[str, Any] = {"scroll_to_output": True, **options}
        upload.upload(handlers.upload, filters, shown, api_name="upload", **to_top)
        results.select(handlers.choose, filters, shown, api_name="choose", **to_top)
        browse.click(handlers.browse, filters, shown, api_name="browse", **options)
        gr.on(
            [again.click, cameras.input, since.submit, until.submit, hits.release],
            handlers.repeat, [query, *filters], shown,
            api_name="search", trigger_mode="always_last", **options,
        )  # fmt: skip
        opened = [cameras, since, until, notes, results]
        page.load(handlers.start, hits, opened, api_name="start", **options)
    page.state_session_capacity = MAX_SESSIONS
    return page.queue(max_size=MAX_WAITING)
