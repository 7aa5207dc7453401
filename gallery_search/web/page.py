"""The page that a browser shows, drawn by Gradio."""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Callable
from typing import Any

import gradio as gr

from gallery_search.web import fragments
from gallery_search.web.pictures import FORMATS, MOST_BYTES, PictureError
from gallery_search.web.search import MOST_HITS, GallerySearch, Query, QuestionError
from occluded_reid.utils.errors import UserError

logger = logging.getLogger(__name__)

TITLE = "Gallery search"
AT_ONCE = 4  # questions that are worked on; the others wait
SESSIONS = 500  # whose query and answer are kept; the oldest are forgotten
WAITING = 200  # at most; who comes then is told so
UNREADABLE = "The gallery cannot be searched now; the server's log says why."

UPLOAD = f"""
<label for="crop"><strong>A picture of the person</strong></label>
<input id="crop" type="file" accept="image/*" aria-describedby="crop-note">
<p class="note" id="crop-note">{", ".join(FORMATS)}, up to {MOST_BYTES // 2**20} MiB, cut out as the
gallery's pictures are. Or choose one of the gallery's: "Search with this".</p>
<p class="alert" role="alert" hidden></p>
"""
# The picture goes with the question: no file of a visitor is ever kept, none is ever served.
SEND = f"""
const input = element.querySelector("input"), alert = element.querySelector("[role=alert]");
input.addEventListener("click", () => {{ input.value = ""; }});  // the same file may come again
const say = (text) => {{ alert.hidden = !text; alert.textContent = text; }};
input.addEventListener("change", () => {{
  const file = input.files[0];
  if (!file) return;
  if (file.size > {MOST_BYTES}) {{
    input.value = "";
    return say("The picture has more than {MOST_BYTES // 2**20} MiB; cut out the person, or save " +
      "it smaller.");
  }}
  say("");
  const reader = new FileReader();
  reader.onerror = () => say("The file cannot be read.");
  reader.onload = () => {{
    trigger("upload", {{ name: file.name, content: reader.result.split(",")[1] || "" }});
  }};
  reader.readAsDataURL(file);
}});
"""
CHOOSE = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-key]");
  if (!button) return;
  document.getElementById("crop").value = "";  // it is not what is asked with any more
  trigger("select", { key: button.dataset.key });
});
"""


class Handlers:
    """What happens at the page's events; an error becomes a message on the page."""

    def __init__(self, search: GallerySearch):
        self._search = search

    def upload(self, event: gr.EventData, *filters: Any) -> tuple[Query | None, str]:
        """A file was chosen."""
        return self._answer(lambda: self._uploaded(event), *filters)

    def choose(self, event: gr.EventData, *filters: Any) -> tuple[Query | None, str]:
        """The button below a gallery image was pressed."""
        return self._answer(lambda: self._search.chosen(said(event, "key")), *filters)

    def browse(self, *filters: Any) -> tuple[Query | None, str]:
        """The query is to be forgotten."""
        return self._answer(lambda: None, *filters)

    def ask(self, query: Query | None, *filters: Any) -> tuple[Query | None, str]:
        """A filter was changed, or the question is to be asked again."""
        return self._answer(lambda: query, *filters)

    def start(self, top: int) -> tuple[Any, ...]:
        """The page was opened: what there is to filter by, and some pictures."""
        search = self._search
        try:
            cameras, span, notes = search.cameras(), search.time_span(), search.notes()
        except UserError as error:
            logger.error(error)
            return (gr.skip(),) * 4 + (fragments.alert(UNREADABLE),)
        times = [fragments.written_time(time) for time in span or ()]
        info = f"The pictures' times go from {times[0]} to {times[1]}." if times else None
        return (
            gr.CheckboxGroup(choices=cameras, visible=bool(cameras)),
            gr.Textbox(visible=bool(times), info=info),
            gr.Textbox(visible=bool(times)),
            fragments.notes(notes),
            self._answer(lambda: None, [], "", "", top)[1],
        )

    def _uploaded(self, event: gr.EventData) -> Query:
        try:
            content = base64.b64decode(said(event, "content"), validate=True)
        except (binascii.Error, ValueError):  # the latter: letters that are not ASCII
            content = b""
        return self._search.uploaded(content, said(event, "name"))

    def _answer(self, query: Callable[[], Query | None], *filters: Any) -> tuple[Query | None, str]:
        cameras, since, until, top = filters
        try:
            asked = query()
            found = self._search.answer(
                asked, cameras=cameras or (), since=since or "", until=until or "", top=int(top)
            )
            return asked, fragments.answer(found)
        except (PictureError, QuestionError) as error:
            return gr.skip(), fragments.alert(str(error))
        except Exception as error:  # whatever it is, the visitor learns no more than that
            logger.error(error, exc_info=not isinstance(error, UserError))
            return gr.skip(), fragments.alert(UNREADABLE)


def theme() -> gr.themes.Base:
    """The machine's own fonts, and colours that stand out from their ground."""
    text, faint = "*neutral_950", "*neutral_700"
    looks = gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"]
    )
    return looks.set(
        body_text_color_subdued=faint,
        block_info_text_color=faint,
        block_label_text_color=text,
        block_title_text_color=text,
        input_placeholder_color=faint,
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_text_color="white",
    )


def said(event: gr.EventData, name: str) -> str:
    """What the browser says about an event, or what anything else sends in its place."""
    value = event._data.get(name) if isinstance(event._data, dict) else None
    return value if isinstance(value, str) else ""


def build_page(search: GallerySearch, top: int = 20) -> gr.Blocks:
    """Return the page; ``top`` is the number of pictures that it shows at first."""
    handlers = Handlers(search)
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.HTML(f"<style>{fragments.style()}</style><h1>{TITLE}</h1>")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                upload = gr.HTML(fragments.page_part(UPLOAD), js_on_load=SEND)
                cameras = gr.CheckboxGroup([], label="Cameras", info="None ticked: all of them.")
                since = gr.Textbox(label="Since", visible=False, max_length=40)
                until = gr.Textbox(label="Until", visible=False, max_length=40)
                hits = gr.Slider(1, MOST_HITS, top, step=1, label="Number of pictures")
                again = gr.Button("Search", variant="primary")
                browse = gr.Button("Show the gallery")
                notes = gr.HTML()
            with gr.Column(scale=3, min_width=300):
                results = gr.HTML(js_on_load=CHOOSE, apply_default_css=False)
        query = gr.State(None)
        filters, shown = [cameras, since, until, hits], [query, results]
        options: dict[str, Any] = {"concurrency_limit": AT_ONCE, "concurrency_id": "search"}
        to_top: dict[str, Any] = {"scroll_to_output": True, **options}
        upload.upload(handlers.upload, filters, shown, api_name="upload", **to_top)
        results.select(handlers.choose, filters, shown, api_name="choose", **to_top)
        browse.click(handlers.browse, filters, shown, api_name="browse", **options)
        gr.on(
            [again.click, cameras.input, since.submit, until.submit, hits.release],
            handlers.ask, [query, *filters], shown,
            api_name="search", trigger_mode="always_last", **options,
        )  # fmt: skip
        page.load(
            handlers.start,
            hits,
            [cameras, since, until, notes, results],
            api_name="start",
            **options,
        )
    page.state_session_capacity = SESSIONS
    return page.queue(max_size=WAITING)
