"""The search page: what it answers, what it refuses, and how it looks in a browser."""

from __future__ import annotations

import http.client
import importlib.util
import io
import os
import shutil
import socket
import sqlite3
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from faults.load import PageClient
from PIL import Image
from runs import draw_market, load_tool
from saved_runs import MODELS, save_run

from gallery_search import GalleryIndex, Item
from gallery_search.web import fragments, images, server
from gallery_search.web.images import (
    RequestError,
    decode_image,
    make_thumbnail,
    read_gallery_image,
)
from gallery_search.web.search import GallerySearch
from occluded_reid.modeling.outputs import Embedding
from occluded_reid.visualization.sheet import HIDDEN, VISIBLE

DIM, PARTS, COUNT = 96, 3, 12
HOSTILE = '<img src=x onerror="window.hacked=1">${window.hacked=2}{{window.hacked=3}}'


def pixels(number: int) -> np.ndarray:
    """Eight rows of four pixels: as many values as a vector has."""
    return np.random.default_rng(number).integers(0, 256, (8, 4, 3), np.uint8)


def feature(image: np.ndarray) -> np.ndarray:
    return image.reshape(-1).astype(np.float32) / 255 - 0.5


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG")
    return stream.getvalue()


class PixelsAsFeatures:
    """Stands for a model."""

    def embed(self, image: Image.Image) -> Embedding:
        found = feature(np.asarray(image))[None]
        return Embedding(found, np.full((len(found), PARTS), 0.25, np.float32))


@pytest.fixture
def index(tmp_path: Path) -> GalleryIndex:
    """Twelve images of four identities at three cameras, an hour apart; one has no file."""
    gallery = tmp_path / "gallery"
    gallery.mkdir()
    made = GalleryIndex.create(
        tmp_path / "index", metric="cosine", dim=DIM, num_parts=PARTS, fingerprint="0123abcd",
        weights="runs/demo", gallery=str(gallery),
    )  # fmt: skip
    items = []
    for number in range(COUNT):
        items.append(Item(f"{number}.png", str(number % 3), 3600.0 * number, str(number % 4)))
        if number:
            (gallery / f"{number}.png").write_bytes(png(pixels(number)))
    with made.writer() as writer:
        features = np.stack([feature(pixels(number)) for number in range(COUNT)])
        writer.add(items, features, np.linspace(0, 1, COUNT * PARTS).reshape(COUNT, PARTS))
    return made


@pytest.fixture
def search(index: GalleryIndex) -> GallerySearch:
    return GallerySearch([index], PixelsAsFeatures())


def paths(answer: Any) -> list[str]:
    return [shown.hit.item.path for shown in answer.results]


def test_an_uploaded_picture_finds_what_the_index_finds(search, index):
    asked = pixels(5)
    asked[0] //= 2
    query = search.query_from_upload(png(asked), "x" * 999)
    answer = search.search(query, top=7)
    hits = index.search(feature(asked)[None], 7)[0]
    assert paths(answer) == [hit.item.path for hit in hits] and paths(answer)[0] == "5.png"
    for shown, hit in zip(answer.results, hits, strict=True):
        assert shown.hit.similarity == hit.similarity and shown.key == f"0:{hit.id}"
        np.testing.assert_array_equal(shown.hit.visibility, hit.visibility)
    assert Image.open(io.BytesIO(answer.results[0].thumbnail)).format == "JPEG"
    assert query.visibility.tolist() == [0.25] * PARTS and len(query.name) == 100


def test_a_read_gallery_image_finds_the_others(search, index):
    first = search.search(search.query_from_upload(png(pixels(5)))).results[0]
    query = search.query_from_gallery(first.key)
    assert (query.name, query.identity) == ("5.png", "1")
    answer = search.search(query, top=COUNT)
    assert sorted([*paths(answer), "5.png"]) == sorted(f"{n}.png" for n in range(COUNT))
    assert "same identity" in fragments.build_results(answer)
    with index.writer() as writer:
        writer.remove([int(first.key[2:])])
    for key in (first.key, "0:999", "1:1", "-1:1", "0:", "a", "", "0:" + "9" * 40, "0:²"):
        with pytest.raises(RequestError, match="not in the gallery any more"):
            search.query_from_gallery(key)


def test_filters_and_browsing(search):
    query = search.query_from_upload(png(pixels(1)))
    for asked in (query, None):
        found = search.search(asked, cameras=["0", "2"], since="3600", until="1970-01-01T08:00:00")
        assert {shown.hit.item.path for shown in found.results} == {
            f"{n}.png" for n in (2, 3, 5, 6, 8)
        }
    assert len(search.search(None, top=4).results) == 4
    assert search.cameras() == ["0", "1", "2"] and search.time_span() == (0, 3600 * 11)
    assert search.describe() == [
        "12 images, cosine similarity, exact search, model demo (0123abcd)"
    ]
    for wrong in ({"top": 0}, {"top": 101}, {"since": "soon"}):
        with pytest.raises(RequestError):
            search.search(query, **wrong)


def test_several_indexes_are_asked_as_one(index):
    both = GallerySearch([index, index], PixelsAsFeatures())
    query = both.query_from_upload(png(pixels(5)))
    answer = both.search(query, top=4)
    assert [shown.key for shown in answer.results[:2]] == ["0:6", "1:6"]
    assert len(both.search(None, top=COUNT + 3).results) == COUNT + 3
    assert paths(both.search(both.query_from_gallery("1:6"), top=1)) == [
        "5.png"
    ]  # that of the other index


def test_what_is_added_is_found_at_once(search, index):
    index_now = len(search.search(top=100).results)
    with index.writer() as writer:
        writer.add([Item("new.png", "gate")], feature(pixels(77))[None], np.zeros((1, PARTS)))
    assert len(search.search(top=100).results) == index_now + 1
    assert search.cameras() == ["0", "1", "2", "gate"]
    assert paths(search.search(search.query_from_upload(png(pixels(77))), top=1)) == ["new.png"]


def test_an_index_with_foreign_values_is_refused(search, index):
    with closing(sqlite3.connect(index.folder / "gallery.sqlite")) as database:
        database.execute("UPDATE items SET camera = X'00' WHERE id = 3")
        database.commit()
    with pytest.raises(server.UserError, match="3.png|2.png") as caught:
        search.search()
    assert not isinstance(caught.value, RequestError)  # the visitor is not told of the disk
    assert search.cameras() == ["0", "1", "2"]


def bomb() -> bytes:
    """A PNG that says it is 60,000 pixels wide and high."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a valid image"),
        (b"MZ" + bytes(1000), "not a valid image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a valid image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a valid image"),
        (png(pixels(0))[:60], "not a valid image"),
        (bytes(images.MAX_BYTES + 1), "larger than 10 MiB"),
        (bomb(), "more than 25 million pixels"),
    ],
    ids=["empty", "program", "svg", "eps", "truncated", "large", "bomb"],
)
def test_what_is_no_picture_is_refused_in_words(content, message, search):
    with pytest.raises(RequestError, match=message):
        search.query_from_upload(content)


def test_between_a_photograph_and_a_bomb(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 31)  # Pillow itself has nothing against 32
    with pytest.raises(RequestError, match="million pixels"):
        decode_image(png(pixels(0)))


def test_nothing_outside_of_the_gallery_is_read(tmp_path):
    gallery, outside = tmp_path / "gallery", tmp_path / "gallery2"
    for folder in (gallery, outside):
        folder.mkdir()
        (folder / "a.png").write_bytes(png(pixels(0)))
    (gallery / "link.png").symlink_to(outside / "a.png")
    (gallery / "inside.png").symlink_to(gallery / "a.png")
    (gallery / "folder").symlink_to(outside)
    os.mkfifo(gallery / "pipe.png")
    assert (
        read_gallery_image(gallery, "a.png").size == read_gallery_image(gallery, "inside.png").size
    )
    (tmp_path / "moved").symlink_to(gallery)
    assert read_gallery_image(tmp_path / "moved", "a.png")  # the folder itself may be a link
    away = ("link.png", "folder/a.png", "../gallery2/a.png", str(outside / "a.png"))
    for path in away:
        with pytest.raises(RequestError, match="leads out of"):
            read_gallery_image(gallery, path)
    for path in ("none.png", "pipe.png", "folder", ""):
        with pytest.raises(RequestError):
            read_gallery_image(gallery, path)


def test_a_thumbnail_is_small_and_carries_nothing_else():
    image = Image.fromarray(np.zeros((3000, 500, 3), np.uint8))
    image.info["comment"] = b"secret"
    small = Image.open(io.BytesIO(make_thumbnail(image)))
    assert small.size == (64, 384) and b"secret" not in make_thumbnail(image)


class Tags(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.found.append((tag, dict(attributes)))


def test_names_from_outside_are_escaped(search, index):
    item = Item(f"a/{HOSTILE}.png".replace("</", "<"), HOSTILE, 1e300, HOSTILE)
    with index.writer() as writer:
        writer.add([item], feature(pixels(88))[None], np.zeros((1, PARTS)))
    query = search.query_from_upload(png(pixels(88)), HOSTILE)
    text = fragments.build_results(search.search(query)) + fragments.build_alert(HOSTILE)
    text += fragments.build_notes([HOSTILE])
    tags = Tags(text).found
    assert {tag for tag, _ in tags} <= {
        "div", "h2", "p", "ol", "li", "ul", "figure", "figcaption", "img", "span", "br", "button"
    }  # fmt: skip
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert all(attributes["src"].startswith("data:") for tag, attributes in tags if tag == "img")
    assert "1e+300" in text  # no year has that name


def test_every_picture_has_words(search):
    tags = Tags(fragments.build_results(search.search(search.query_from_gallery("0:6")))).found
    images = [attributes for tag, attributes in tags if tag == "img"]
    buttons = [attributes for tag, attributes in tags if tag == "button"]
    assert len(images) == COUNT - 1  # the query and ten others; one has no file
    assert images[1]["alt"].startswith("Rank 1: identity ")
    assert len({each["aria-label"] for each in buttons}) == COUNT - 1
    text = fragments.build_results(search.search(search.query_from_gallery("0:6")))
    assert text.count("image not available") == 1 and "--share: 25%" not in text
    assert fragments.format_time(1717172400) == "2024-05-31 16:20:00"
    assert fragments.format_time(123456789012) and fragments.format_time(451) == "451"


def test_the_guard_lets_through_what_the_page_needs():
    guard = server.Guard(None, frozenset(("localhost",)))

    def status(path: str, method: str = "GET", host: str = "localhost:7860", **more: str) -> int:
        named = {"host": host, **{name.replace("_", "-"): value for name, value in more.items()}}
        headers = [(name.encode(), value.encode()) for name, value in named.items()]
        return guard._check({"path": path, "method": method, "headers": headers})

    assert not status("/") and not status("/assets/index.js")
    assert not status("/gradio_api/queue/join", "POST", content_length="100")
    for path in ("/gradio_api/file=/etc/passwd", "/gradio_api/upload", "/assets/../x", "//", "/x"):
        assert status(path) == 404
    assert status("/", host="evil.example") == status("/", host="localhost.evil") == 403
    assert not status("/", host="localhost")
    join = "/gradio_api/queue/join"
    for site, expected in (("cross-site", 403), ("same-site", 403), ("same-origin", 0)):
        assert status(join, "POST", content_length="9", sec_fetch_site=site) == expected
    assert not status("/", sec_fetch_site="cross-site", sec_fetch_mode="navigate")  # a link
    assert status("/gradio_api/queue/join", "POST") == 411
    assert status("/gradio_api/queue/join", "POST", content_length="99999999") == 413


def test_where_gradio_is_missing_one_message_says_how_to_get_it(index, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    words = ["serve", "--index", str(index.folder)]
    assert load_tool("search").command(words) == 2
    assert "pip install '.[web]'" in capsys.readouterr().err


def test_an_address_that_is_taken_is_one_message():
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as taken,
        pytest.raises(server.UserError, match="choose another --port"),
    ):
        server.open_socket("127.0.0.1", taken.getsockname()[1])
    assert server.is_local("127.0.0.1") and server.is_local("::1") and server.is_local("localhost")
    assert not server.is_local("0.0.0.0") and not server.is_local("example.org")


START = """
import sys
sys.path[:0] = {paths!r}
import conftest, tiny_runs
from runs import load_tool
sys.exit(load_tool("search").command(sys.argv[1:]))
"""


@dataclass
class Served:
    """A page that a process serves: its address, its gallery, where it puts what it writes."""

    process: subprocess.Popen[str]
    address: str
    market: Path
    temporary: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page of 48 drawn images, one of a hostile name and one that leads out."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("Gradio is not installed: pip install '.[web]'")
    home, tool = tmp_path_factory.mktemp("served"), load_tool("search")
    run, index = save_run(MODELS["FED"](home / "run")), home / "index"
    market = draw_market(home) / "Market-1501-v15.09.15"
    gallery = market / "bounding_box_test"
    shutil.copy(gallery / "0001_c1s1_000000_01.jpg", gallery / f"{HOSTILE}.jpg")
    words = ["--index", str(index), "--weights", str(run), "--workers", "0"]
    assert tool.command(["build", "--gallery", str(gallery), *words]) == 0
    (home / "secret.jpg").write_bytes(png(np.full((8, 4, 3), 7, np.uint8)))
    (gallery / "0099_c9s1_000009_01.jpg").symlink_to(home / "secret.jpg")
    with GalleryIndex(index).writer() as writer:
        dim, parts = GalleryIndex(index).info().dim, GalleryIndex(index).info().num_parts
        hostile = Item("0099_c9s1_000009_01.jpg", HOSTILE, 9.0, HOSTILE)
        writer.add([hostile], np.ones((1, dim)), np.ones((1, parts)))
    temporary = home / "temporary"
    temporary.mkdir()
    tests = Path(__file__).parent
    start = START.format(paths=[str(tests), str(tests.parent), str(tests.parent / "helpers")])
    process = subprocess.Popen(
        [sys.executable, "-c", start, "serve", "--index", str(index), "--port", "0"],
        env={**os.environ, "TMPDIR": str(temporary)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        found = (line.strip() for line in process.stdout if line.startswith("http://"))
        yield Served(process, next(found), market, temporary)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.extras
def test_in_a_browser(served, browser, tmp_path):
    """Upload, filter, choose; nothing from other hosts, no name becomes HTML, nothing cut off."""
    asked: list[str] = []
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(120_000)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(served.address)
    page.wait_for_selector("button[data-key]")
    assert page.locator(".hits > li").count() == 20
    page.set_input_files("#crop", served.market / "query" / "0003_c2s1_000000_01.jpg")
    page.wait_for_selector(".query")
    assert "identity 3" in page.locator(".hits > li").first.inner_text()
    assert "0003_c2s1_000000_01.jpg" in page.locator(".query").inner_text()
    assert page.locator(".hits img").first.evaluate("image => image.naturalWidth") == 32
    picture = page.locator(".hits li").first.locator(".picture").screenshot()
    drawn = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    for colour in (VISIBLE, HIDDEN):
        assert (abs(drawn - colour).max(-1) <= 3).sum() > 100
    page.get_by_label("2", exact=True).check()
    page.wait_for_selector("text=16 images found.")
    page.get_by_label("2", exact=True).uncheck()
    page.get_by_label(HOSTILE, exact=True).check()
    page.wait_for_selector("text=1 image found.")
    assert "image not available" in page.locator(".hits").inner_text()  # it leads out
    page.get_by_role("button", name="Show the gallery").click()
    page.wait_for_selector("text=Gallery images")
    page.get_by_label(HOSTILE, exact=True).uncheck()
    page.wait_for_selector("text=20 images found.")
    page.get_by_role("button", name="Image 3: search").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("text=different identity")
    for content, message in (
        (b"text", "This is not a valid image"),
        (bytes(11 * 2**20), "than 10 MiB"),
    ):
        file = tmp_path / f"{len(content)}.jpg"
        file.write_bytes(content)
        page.set_input_files("#crop", file)
        page.wait_for_selector(f"[role=alert]:visible:has-text('{message}')")
    assert page.evaluate("window.hacked") is None
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    outside = [each for each in asked if not each.startswith((served.address, "data:", "blob:"))]
    assert outside == [] and not [each for each in asked if "/file=" in each]


def status_of_path(address: str, path: str, **headers: str) -> tuple[int, bytes]:
    """Ask for a path as it is written: no client tidies it up."""
    with closing(http.client.HTTPConnection(address.removeprefix("http://"), timeout=120)) as line:
        line.putrequest("GET", path, skip_host="Host" in headers)
        for name, value in headers.items():
            line.putheader(name, value)
        line.endheaders()
        response = line.getresponse()
        return response.status, response.read()


@pytest.mark.extras
def test_nothing_but_the_page_is_served(served):
    secret = served.market.parent / "secret.jpg"
    ways = ["/gradio_api/file=", "/file=", "/gradio_api/file/", "/gradio_api/proxy=", "/static/",
            "/assets/", "/svelte/", "/static/../../", "/assets/%2e%2e/%2e%2e/", "//", "/",
            "/gradio_api/file=..%2f..%2f", "/static/..%5c", "/assets/....//....//",
            "/gradio_api/heartbeat/../file=", "/gradio_api/custom_component/x/client/y/",
            "/gradio_api/stream/", "/static/%252e%252e/", "/static//"]  # fmt: skip
    places = [secret, served.market / "bounding_box_test" / "0001_c1s1_000000_01.jpg"]
    for place in [*places, Path("/etc/passwd"), Path(__file__)]:
        content = place.read_bytes()
        for path in (f"{way}{quote(str(place))}" for way in ways):
            status, found = status_of_path(served.address, path)
            assert status in (400, 403, 404) and content not in found, path
    for path in ("/gradio_api/upload", "/docs", "/openapi.json", "/monitoring", "/gradio_api/runs"):
        assert status_of_path(served.address, path)[0] == 404
    assert status_of_path(served.address, "/", Host="evil.example")[0] == 403
    status, found = status_of_path(served.address, "/")
    assert (
        status == 200 and b"https://fonts" not in found and str(secret.parent).encode() not in found
    )


@pytest.mark.extras
def test_only_this_machine_is_listened_to(served):
    psutil = pytest.importorskip("psutil")
    connections = psutil.Process(served.process.pid).net_connections(kind="inet")
    listening = {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


@pytest.mark.extras
def test_the_events_take_no_files(served):
    """What a browser would not send: paths and addresses in place of what was typed."""
    client = PageClient(served.address)
    for path in ("/etc/passwd", "http://127.0.0.1:9/", str(served.market.parent / "secret.jpg")):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}, "url": path}
        try:
            answer = client.call("upload", [[], "", "", 5], {"content": file, "name": file})[1]
        except OSError as error:  # Gradio itself refuses some of them
            answer = str(error)
        assert "This is not a valid image" in answer or "cannot be accessed" in answer
        for event in ({"content": path, "name": "x"}, {"content": 7}, path, None):
            assert "This is not a valid image" in client.call("upload", [[], "", "", 5], event)[1]
        assert "not in the gallery" in client.call("choose", [[], "", "", 5], {"key": path})[1]
        with pytest.raises(OSError):  # Gradio's own check of what can be ticked
            client.call("search", [None, [path], "", "", 5])
    with pytest.raises(OSError, match="greater than maximum"):
        client.call("browse", [[], "", "", 999])


@pytest.mark.extras
def test_the_server_ends_and_leaves_nothing(served):
    """The last of this file's: it ends the server."""
    assert list(served.temporary.iterdir()) != []
    served.process.terminate()
    assert served.process.wait(60) == 143
    assert list(served.temporary.iterdir()) == []
