"""The page's addresses, and what each of them returns."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import anyio
import jinja2
from markupsafe import Markup
from PIL import ImageDraw
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from gallery_search.store.metadata import DATES_FROM, format_time, natural_key
from gallery_search.video import read_frame
from gallery_search.web import MAX_HITS
from gallery_search.web.images import MAX_BYTES, SIZES, RequestError, make_jpeg
from gallery_search.web.question import MAX_IMAGES, ORDERS, Question
from gallery_search.web.search import Answer, GallerySearch
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.terminal import show

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
FAILED = "The gallery cannot be searched at the moment. The program's window says why."
MAX_WAITING = 20  # uploads; further ones are refused
GONE = b"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 200"><rect width="100"
height="200" fill="#ddd"/><text x="50" y="100" text-anchor="middle" font-size="13"
font-family="sans-serif">no picture</text></svg>"""
FILES = {"page.css": "text/css", "page.js": "text/javascript"}
MARKS = {"same": "the same person", "other": "somebody else", "": ""}


class Page:
    """The page of a gallery; each method answers one address."""

    def __init__(self, search: GallerySearch, top: int):
        self._search, self._top = search, top
        self._files = {name: (FOLDER / name).read_bytes() for name in FILES}
        loader = jinja2.FileSystemLoader(FOLDER)
        self._html = jinja2.Environment(loader=loader, autoescape=True, finalize=clean)
        self._html.globals.update(
            search=search,
            orders=ORDERS,
            max_images=MAX_IMAGES,
            max_hits=MAX_HITS,
            format_time=format_time,
        )
        self._uploads = anyio.CapacityLimiter(2)

    def home(self, request: Request) -> Response:
        """Show the answers, or the start with some of the gallery."""
        question = self._read(request)
        found, alert = self._try(lambda: self._collect(question), {})
        answers = found.get("", [])
        span = self._search.time_span()
        context = {
            "question": question, "answers": answers, "groups": group(answers, question.order),
            "ranks": {each.key: rank for rank, each in enumerate(answers, 1)}, "marked": found,
            "cameras": self._search.cameras(), "span": span,
            "dated": bool(span and span[1] >= DATES_FROM), "dots": draw_timeline(answers),
        }  # fmt: skip
        return self._render("results.html" if question.images else "start.html", context, alert)

    def compare(self, request: Request) -> Response:
        """Show one answer beside the query."""
        question = self._read(request)
        key = request.query_params.get("hit", "")
        both, alert = self._try(lambda: self._search.compare(question, key), None)
        return self._render("compare.html", {"question": question, "both": both}, alert)

    def report(self, request: Request) -> Response:
        """Return the search and its answers, to print or, with the name .csv, as a table."""
        question = self._read(request)
        found, alert = self._try(lambda: self._collect(question), {})
        if alert or not request.url.path.endswith(".csv"):
            now = datetime.now(timezone.utc).isoformat(" ", "seconds")[:19]
            context = {"question": question, "found": found, "now": now}
            return self._render("report.html", context, alert)
        headers = {"content-disposition": 'attachment; filename="search.csv"'}
        return Response(write_csv(found), media_type="text/csv; charset=utf-8", headers=headers)

    def _read(self, request: Request) -> Question:
        return Question.read(request.query_params.multi_items(), self._top)

    def _collect(self, question: Question) -> dict[str, list[Answer]]:
        """Return the confirmed and the rejected images, and under ``""`` the answers."""
        marks = {name: getattr(question, name) for name in ("same", "other")}
        marked = {name: self._search.judge_marked(question, keys) for name, keys in marks.items()}
        return {**marked, "": self._search.ask(question)}

    def image(self, request: Request) -> Response:
        """Return the JPEG of an upload or a gallery image."""
        key, size = request.path_params["key"], request.path_params["size"]
        content, alert = self._try(
            lambda: self._search.render_image(key, size) if size in SIZES else None, None
        )
        if content is None:
            return Response(GONE, 404 if alert else 200, media_type="image/svg+xml")
        return Response(content, media_type="image/jpeg")

    def frame(self, request: Request) -> Response:
        """Return the frame that an answer was cut from, with its box."""
        frame = self._search.find_frame(request.path_params["key"])
        if frame is None:
            return Response(GONE, 404, media_type="image/svg+xml")
        try:
            image = read_frame(frame)
        except UserError as error:
            logger.warning(str(error))
            return Response(GONE, 404, media_type="image/svg+xml")
        width = max(2, image.width // 250)
        ImageDraw.Draw(image).rectangle(frame.corners, outline=(255, 200, 0), width=width)
        return Response(make_jpeg(image, "large"), media_type="image/jpeg")

    async def upload(self, request: Request) -> Response:
        """Take a crop, or return a JPEG of an image that the browser cannot show."""
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BYTES:
                text = f"The picture is larger than {MAX_BYTES // 2**20} MB."
                return JSONResponse({"error": text}, 413)
        if self._uploads.statistics().tasks_waiting >= MAX_WAITING:
            return JSONResponse({"error": "Too many pictures at once. Try again."}, 503)
        handle: Callable[[bytes], Any] = self._search.add_upload
        is_preview = request.url.path == "/preview"
        if is_preview:
            handle = self._search.preview
        result, alert = await anyio.to_thread.run_sync(
            lambda: self._try(lambda: handle(bytes(body)), None), limiter=self._uploads
        )
        if alert:
            return JSONResponse({"error": alert}, 422)
        if is_preview:
            return Response(result, media_type="image/jpeg")
        return JSONResponse({"key": result})

    def file(self, request: Request) -> Response:
        """Return the style sheet or the script."""
        name = request.url.path[1:]
        return Response(self._files[name], media_type=FILES[name])

    def _try(self, work: Callable[[], Any], otherwise: Any) -> tuple[Any, str]:
        """Return what ``work`` returns, or ``otherwise``, and what to tell the visitor."""
        try:
            return work(), ""
        except RequestError as error:
            return otherwise, str(error)
        except Exception as error:  # details stay in the log
            logger.error(error, exc_info=not isinstance(error, UserError))
            return otherwise, FAILED

    def _render(self, name: str, context: dict[str, Any], alert: str) -> Response:
        text = self._html.get_template(name).render({**context, "alert": alert})
        return Response(text, 400 if alert else 200, media_type="text/html")


def build_app(search: GallerySearch, top: int = 40) -> Starlette:
    """Return the page as an ASGI application; ``top`` is the number of answers at first."""
    page = Page(search, top)
    routes = [
        Route("/", page.home), Route("/compare", page.compare), Route("/report", page.report),
        Route("/report.csv", page.report), Route("/image/{key}/{size}", page.image),
        Route("/frame/{key}", page.frame), Route("/upload", page.upload, methods=["POST"]),
        Route("/preview", page.upload, methods=["POST"]),
        *(Route(f"/{name}", page.file) for name in FILES),
    ]  # fmt: skip
    lost = {404: lambda request, error: RedirectResponse("/", 303)}
    return Starlette(routes=routes, exception_handlers=lost)


def clean(value: Any) -> Any:
    """Return what a template prints, with control characters as escapes."""
    return show(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def group(answers: list[Answer], order: str) -> list[tuple[str, list[Answer]]]:
    """Return the answers in the chosen order, under headings."""
    if order == "time":
        unknown = math.inf  # comes last
        answers = sorted(answers, key=lambda a: unknown if (t := a.hit.item.time) is None else t)
    if order != "camera":
        return [("", answers)]
    names = sorted({each.hit.item.camera or "" for each in answers}, key=natural_key)
    return [(name, [a for a in answers if (a.hit.item.camera or "") == name]) for name in names]


def draw_timeline(answers: list[Answer]) -> list[dict[str, Any]]:
    """Return a row of dots for each camera: the answers with a time, at 0 to 100 across."""
    timed = [each for each in answers if each.hit.item.time is not None]
    times = [each.hit.item.time or 0.0 for each in timed]
    if len(set(times)) < 2:
        return []
    first, last = min(times), max(times)
    dots = {
        each.key: (each, round(100 * (time - first) / (last - first), 2))
        for each, time in zip(timed, times, strict=True)
    }
    return [
        {"camera": name, "dots": [dots[each.key] for each in members], "span": (first, last)}
        for name, members in group(timed, "camera")
    ]


def write_csv(found: dict[str, list[Answer]]) -> str:
    """Return a table of the answers: no cell is a formula or has control characters."""
    stream = io.StringIO(newline="")
    rows = csv.writer(stream)
    rows.writerow(["marked", "rank", "likeness", "sure", "camera", "time", "identity", "file"])
    for mark, answers in found.items():
        for rank, (_, hit, similarity, verdict) in enumerate(answers, 1):
            item = hit.item
            time = "" if item.time is None else format_time(item.time)
            texts = [verdict, item.camera or "", time, item.identity or "", item.path]
            number = f"{similarity:.4f}"
            rows.writerow([MARKS[mark], "" if mark else rank, number, *map(make_cell, texts)])
    return "\ufeff" + stream.getvalue()  # without the mark, Excel does not read UTF-8


def make_cell(text: str) -> str:
    """Return a text that a spreadsheet takes for a text.

    >>> make_cell("=1+1")
    "'=1+1"
    """
    text = show(text)
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") else text
