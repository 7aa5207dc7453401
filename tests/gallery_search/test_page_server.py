"""The search page in a browser, and under attack; all loads are small and stay on this machine."""

from __future__ import annotations

import csv
import http.client
import importlib.util
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import numpy as np
import pytest
from PIL import Image
from runs import draw_market
from saved_runs import MODELS, save_run

HOSTILE = '<img src=x onerror="window.hacked=1">${window.hacked=2}{{window.hacked=3}}'
START = """
import sys
sys.path[:0] = {paths!r}
import conftest, tiny_runs
from runs import load_tool
sys.exit(load_tool("search").command(sys.argv[1:]))
"""
pytestmark = pytest.mark.extras


@dataclass
class Served:
    """A page that a process serves: its address, its gallery, its log, where it may write."""

    process: subprocess.Popen[bytes]
    address: str
    market: Path
    log: Path
    temporary: Path

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


def save_png(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page of a folder of 50 drawn images, one of a hostile name and one that leads out."""
    if importlib.util.find_spec("starlette") is None:
        pytest.skip("Starlette is not installed: pip install '.[web]'")
    home = tmp_path_factory.mktemp("served")
    run = save_run(MODELS["FED"](home / "run"))
    market = draw_market(home) / "Market-1501-v15.09.15"
    gallery = market / "bounding_box_test"
    shutil.copy(gallery / "0001_c1s1_000000_01.jpg", gallery / f"{HOSTILE}.jpg")
    save_png(home / "secret.png", np.full((8, 4, 3), 7, np.uint8))
    (gallery / "0099_c9s1_000009_01.jpg").symlink_to(home / "secret.png")
    rows = [["path", "camera", "time", "identity"]]
    for path in sorted(gallery.iterdir()):
        camera = path.name[6:7] if path.name[0] == "0" else HOSTILE
        moment = f"2026-05-0{len(rows) % 9 + 1}T12:00:00"
        rows.append([path.name, camera, moment, HOSTILE if camera == "9" else path.name[:4]])
    with open(home / "table.csv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    thresholds = {"certain": 0.9, "possible": -0.5, "queries": 9, "identities": 3}
    import occluded_reid

    thresholds["fingerprint"] = occluded_reid.load(run).fingerprint
    (home / "thresholds.json").write_text(json.dumps(thresholds))
    temporary, log = home / "temporary", home / "log"
    temporary.mkdir()
    tests = Path(__file__).parent
    start = START.format(paths=[str(tests), str(tests.parent), str(tests.parent / "helpers")])
    words = ["serve", gallery, "--weights", run, "--metadata", home / "table.csv", "--workers", "0",
             "--port", "0", "--no-browser", "--thresholds", home / "thresholds.json"]  # fmt: skip
    with open(log, "w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", start, *map(str, words)], stdout=stream, stderr=stream,
            env={**os.environ, "TMPDIR": str(temporary)},
        )  # fmt: skip
    try:
        while not (found := re.search(r"^http://\S+$", log.read_text(), re.M)):
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        yield Served(process, found[0], market, log, temporary)
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


def is_on_screen(locator: Any) -> bool:
    """Whether the upper half of an element is inside the window."""
    return bool(
        locator.evaluate(
            "each => { const box = each.getBoundingClientRect();"
            "return box.top >= 0 && box.top + box.height / 2 <= innerHeight && box.height > 50 }"
        )
    )


def assert_answers_are_seen(page: Any) -> None:
    """The query and the first answers are on the screen, and nothing is cut off at the side."""
    for name in (".asked img", ".answers img"):
        first = page.locator(name).first
        page.wait_for_function(
            "image => image.complete && image.naturalWidth", arg=first.element_handle()
        )
        assert is_on_screen(first), (name, first.bounding_box(), page.evaluate("scrollY"))
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") == width


def query_of(page: Any) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


@pytest.mark.parametrize("width", [1280, 390])
def test_an_investigation(served, browser, tmp_path, width):
    """Search, filter, go back, confirm, refine and report; names of images stay text."""
    context = browser.new_context(viewport={"width": width, "height": 844}, has_touch=width < 400)
    page, asked = context.new_page(), []
    page.set_default_timeout(60_000)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(served.address)
    crops = [served.market / "query" / f"0003_c{n}s1_000000_01.jpg" for n in (1, 2)]
    page.set_input_files("#search input", crops)
    page.wait_for_selector(".results")
    assert_answers_are_seen(page)
    assert len(query_of(page)["q"]) == 2 and page.locator(".asked img").count() == 2
    first = page.url
    names = page.locator(".answers .photo").evaluate_all("all => all.map(each => each.href)")
    other = browser.new_page()  # the address can be sent
    other.goto(first)
    sent = other.locator(".answers .photo").evaluate_all("all => all.map(each => each.href)")
    assert sent == names and len(names) == 40

    page.evaluate("scrollTo(0, 3000)")
    if width < 400:
        page.locator(".filters summary").click()
    page.locator("aside").get_by_label("2", exact=True).check()
    page.wait_for_url("**camera=2**")
    assert_answers_are_seen(page)
    assert page.locator(".answers .answer").count() == 16
    page.go_back()
    page.wait_for_url(first)
    assert_answers_are_seen(page)
    page.go_forward()
    page.wait_for_url("**camera=2**")

    page.locator(".answers label").nth(0).click()
    page.locator(".answers label").nth(3).click()
    page.locator(".answers a.photo").nth(2).click()
    page.wait_for_selector("#viewer[open] .why meter")
    page.keyboard.press("s")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#viewer .same:not(.on)")
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer", state="hidden")
    assert "2 confirmed, 1 not the same" in page.locator(".bar").inner_text()
    assert len(query_of(page)["same"]) == 2 and len(query_of(page)["other"]) == 1
    page.get_by_role("button", name="Search again with these").click()
    page.wait_for_selector(".marked")
    assert_answers_are_seen(page)
    assert page.locator(".answers .answer").count() == 13

    page.get_by_label("Order").select_option("camera")
    page.wait_for_selector("h3:has-text('Camera 2')")
    page.locator(".timeline summary").click()
    assert page.locator(".timeline circle").count() == 13
    with context.expect_page() as opened:
        page.get_by_role("button", name="Report").click()
    report = opened.value
    report.wait_for_load_state()
    text = report.locator("main").inner_text()
    assert "the same person (2)" in text and "not the same person (1)" in text
    assert "Cameras\n2" in text and "possible" in text.lower()
    with report.expect_download() as download:
        report.get_by_text("Save as a table").click()
    table = list(csv.reader(io.StringIO(download.value.path().read_text("utf-8-sig"))))
    assert [row[0] for row in table[1:4]] == ["the same person"] * 2 + ["somebody else"]
    assert len(table) == 1 + 3 + 13

    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    page.set_input_files("aside input[type=file]", broken)
    page.wait_for_selector("[role=alert]:has-text('cannot be used')")
    assert page.evaluate("document.querySelector('aside input[type=file]').files.length") == 0
    page.goto(f"{served.address}/?q=lost&camera=2&since=2026-05-03T00:00:00")
    page.wait_for_selector("[role=alert]:has-text('Choose it again')")
    if width < 400:
        page.locator(".filters summary").click()
    assert page.locator("aside").get_by_label("2", exact=True).is_checked()
    assert page.locator("input[name=since]").input_value().startswith("2026-05-03T00:00")
    page.goto(f"{served.address}/?camera={quote(HOSTILE)}&camera=9")
    page.wait_for_function("() => [...document.images].every(image => image.complete)")
    assert page.locator(".answers img").count() == 2 and page.evaluate("window.hacked") is None
    outside = [each for each in asked if not each.startswith((served.address, "data:", "blob:"))]
    assert outside == []


@pytest.mark.parametrize("width", [1280, 390])
def test_a_box_is_drawn_on_a_larger_picture(served, browser, tmp_path, width):
    """Only what is in the box is sent; a format that the browser does not know is converted."""
    scene = np.full((400, 600, 3), 90, np.uint8)
    crop = Image.open(served.market / "query" / "0005_c1s1_000000_01.jpg").resize((150, 300))
    scene[50:350, 200:350] = np.asarray(crop)
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.set_default_timeout(60_000)
    for name in ("scene.png", "scene.tif"):
        page.goto(served.address)
        page.set_input_files("#search input", save_png(tmp_path / name, scene))
        page.wait_for_selector("#chooser[open]")
        assert page.get_by_role("button", name="Use this box").is_disabled()
        area = page.locator(".stage").bounding_box()
        scale = area["width"] / 600
        page.mouse.move(area["x"] + 200 * scale, area["y"] + 50 * scale)
        page.mouse.down()
        page.mouse.move(area["x"] + 350 * scale, area["y"] + 350 * scale, steps=4)
        page.mouse.up()
        page.get_by_role("button", name="Use this box").click()
        page.wait_for_selector(".results")
        assert_answers_are_seen(page)
        address = page.locator(".asked img").first.evaluate("each => each.src")
        sent = Image.open(io.BytesIO(page.request.get(address).body()))
        assert abs(sent.width / sent.height - 0.5) < 0.02
        expected = np.asarray(crop).mean((0, 1))
        assert np.abs(np.asarray(sent).mean((0, 1)) - expected).max() < 8


def ask(
    served: Served, path: str, method: str = "GET", body: Any = None, **headers: str
) -> tuple[int, bytes]:
    """Ask for a path as it is written: no client tidies it up."""
    with closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)) as line:
        line.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            line.putheader(name.replace("_", "-"), value)
        if body is not None and "Transfer_Encoding" not in headers:
            line.putheader("Content-Length", str(len(body)))
        line.endheaders(body)
        response = line.getresponse()
        return response.status, response.read()


def test_no_value_names_a_file_of_the_server(served):
    secret = served.market.parent / "secret.png"
    pipe = served.market.parent / "pipe.png"
    os.mkfifo(pipe)
    for place in (secret, Path("/etc/passwd"), Path(__file__), pipe):
        content = b"" if place == pipe else place.read_bytes()
        name = quote(str(place), safe="")
        for path in (f"/?q={name}", f"/compare?q={name}&hit={name}", f"/report?same={name}&q=0.1",
                     f"/image/{name}/small", f"/image/0.1/{name}", f"/frame/{name}", f"//{place}",
                     f"/image/../../{place}", f"/page.css/..%2f..%2f{name}", f"/{name}",
                     f"/page.css%00{name}", f"/?since={name}&camera={name}"):  # fmt: skip
            status, found = ask(served, path)
            assert status in (200, 303, 400, 404), path
            assert not content or content not in found
    report = ask(served, "/report?q=1.1&camera=%1b%5b31m")[1]
    assert b"\x1b" not in report and b"\\x1b[31m" in report  # a control character
    link = ask(served, "/?camera=9")[1]
    key = link.split(b"/?q=")[1].split(b'"')[0].decode()
    status, found = ask(served, f"/image/{key}/small")
    assert status == 200 and b"<svg" in found  # it leads out: no picture


def test_other_sites_are_not_worked_for(served):
    """Whatever the method and type: Origin, Host and Sec-Fetch-Site are checked."""
    own = f"127.0.0.1:{served.port}"
    for path, method in (("/", "GET"), ("/?q=0.1", "GET"), ("/upload", "POST"), ("/x", "PUT")):
        for headers in (
            {"Host": "evil.example"}, {"Host": f"127.0.0.1.evil.example:{served.port}"},
            {"Host": "evil.example", "X_Forwarded_Host": own, "Forwarded": f"host={own}"},
            {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": f"http://{own}1"},
            {"Origin": "http://localhost:1"}, {"Sec_Fetch_Site": "cross-site"},
            {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "no-cors"},
            {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "iframe"},
        ):  # fmt: skip
            more = {"Content_Type": "text/plain"} if method == "POST" else {}
            status, found = ask(served, path, method, b"x" * 9, **headers, **more)
            assert status == 403 and len(found) < 100, (path, headers)
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "document"}
    status, found = ask(served, "/?q=0.1", **link)
    assert status == 200 and b"Another site led here" in found and b"/image/" not in found
    assert ask(served, "/", Origin=f"http://{own}", Sec_Fetch_Site="same-origin")[0] == 200
    assert ask(served, "/", X_Forwarded_Host="evil.example", Origin=f"http://{own}")[0] == 200


def test_a_body_is_counted_as_it_comes(served):
    """A chunked one of any length is refused after 10 MiB, and the connection ends."""
    piece = b"10000\r\n" + bytes(2**16) + b"\r\n"
    sent = 0
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as line:
        head = f"POST /upload HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n"
        line.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        with pytest.raises(OSError):
            while sent < 64 * 2**20:
                line.sendall(piece)
                sent += 2**16
    assert 10 * 2**20 <= sent < 32 * 2**20  # what was on the way counts
    assert ask(served, "/")[0] == 200


def test_silent_and_slow_connections_are_closed(served):
    """They lock nobody out, and end after seconds."""
    with ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=20))
            for _ in range(320)
        ]
        slow = silent[-1]
        start = time.monotonic()
        assert ask(served, "/page.css")[0] == 200 and time.monotonic() - start < 5
        with pytest.raises(OSError):  # one byte of a request every half second
            for byte in b"GET / HTTP/1.1\r\nX: " + b"x" * 60:
                slow.send(bytes([byte]))
                time.sleep(0.5)
        assert time.monotonic() - start < 25
        for each in silent[:-1]:
            with closing(each):
                assert ended(each)


def ended(line: socket.socket) -> bool:
    try:
        return line.recv(1) == b""
    except OSError:
        return True


def jpeg_of_many_scans(scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    stream = io.BytesIO()
    Image.new("RGB", (2000, 2000)).save(stream, "JPEG", progressive=True)
    content = stream.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * scans + b"\xff\xd9"


def test_hostile_pictures_delay_nobody(served):
    """They are refused, or ended after seconds; the memory of the server stays what it was."""
    psutil = pytest.importorskip("psutil")
    server = psutil.Process(served.process.pid)
    before = server.memory_info().rss
    stream = io.BytesIO()
    Image.fromarray(np.full((5000, 5000), 40_000, np.uint16)).save(
        stream, "TIFF", compression="tiff_lzw"
    )
    large = io.BytesIO()
    Image.new("RGB", (5000, 4999)).save(large, "PNG")
    pictures = [jpeg_of_many_scans(3000), stream.getvalue(), large.getvalue()] * 2
    lines = []
    for content in pictures:
        line = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
        line.request("POST", "/preview", content)
        lines.append(line)
    start = time.monotonic()
    assert ask(served, "/")[0] == 200
    assert time.monotonic() - start < 10
    for line in lines:
        with closing(line):
            assert line.getresponse().status in (200, 422)
    assert time.monotonic() - start < 40
    assert server.memory_info().rss - before < 400 * 2**20


def test_odd_questions_do_not_fill_the_log(served):
    before = served.log.stat().st_size
    for number in range(100):
        ask(served, f"/image/0.{number}/small")
        ask(served, f"/?q={number}&top=-1&camera=%00%1b%5b31m&since=soon")
        ask(served, f"/{number}", "DELETE")
        with socket.create_connection(("127.0.0.1", served.port)) as line:
            line.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
            line.recv(100)
    assert served.log.stat().st_size - before < 20_000


def test_only_this_machine_is_listened_to(served):
    psutil = pytest.importorskip("psutil")
    connections = psutil.Process(served.process.pid).net_connections(kind="inet")
    listening = {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


def test_no_cell_of_the_table_is_a_formula():
    app = pytest.importorskip("gallery_search.web.app")
    for text in ("=1+1", "+1", "-1", "@x", " =1"):
        assert app.make_cell(text) == f"'{text}"
    assert app.make_cell("gate 1") == "gate 1" and app.make_cell("\r\n=1") == "\\r\\n=1"


def test_elsewhere_a_token_opens_the_page():
    server = pytest.importorskip("gallery_search.web.server")
    guard = server.Guard(None, None, "secret")

    def check(query: str = "", **headers: str) -> Any:
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"method": "GET", "query_string": query.encode(), "headers": pairs}
        return guard._check(scope)

    assert check(host="x")[0] == check("token=", host="x")[0] == check("token=SECRET")[0] == 403
    status, _, headers = check("token=secret", host="x")
    assert status == 303 and b"HttpOnly; SameSite=Strict" in dict(headers)[b"set-cookie"]
    assert check(host="x", cookie="a=b; token=secret") is None
    assert check(host="x", cookie="token=secre")[0] == 403
    assert check(host="x", cookie="token=secret", origin="http://y")[0] == 403
    assert server.is_local("127.0.0.1") and server.is_local("::1") and server.is_local("localhost")
    assert not server.is_local("0.0.0.0") and not server.is_local("example.org")
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as taken,
        pytest.raises(server.UserError, match="choose another --port"),
    ):
        server.open_socket("127.0.0.1", taken.getsockname()[1])


def test_the_server_ends_and_leaves_nothing(served):
    """The last of this file's: it ends the server, and its decoders with it."""
    psutil = pytest.importorskip("psutil")
    children = psutil.Process(served.process.pid).children(recursive=True)
    assert "link" in served.log.read_text()  # the image that leads out was named
    served.process.terminate()
    assert served.process.wait(60) is not None
    psutil.wait_procs(children, timeout=10)
    assert not any(each.is_running() for each in children)
    assert list(served.temporary.iterdir()) == []
