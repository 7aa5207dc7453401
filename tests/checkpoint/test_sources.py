"""Weights by a text: files, packages, the hub and other addresses, against a local server."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from occluded_reid.checkpoint.sources import resolve_source
from occluded_reid.utils.errors import UserError

CONTENT = bytes(range(256)) * 8192  # 2 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT, resumed where asked; ``cut`` ends the first reply early."""

    cut = False
    ranges: list[str] = []

    def do_GET(self) -> None:
        if self.path.startswith("/api/"):
            names = ("README.md", *self.server.files)  # type: ignore[attr-defined]
            files = [{"type": "file", "path": each, "size": 1, "oid": "0" * 40} for each in names]
            body = json.dumps(files).encode()
            self.reply(200, body, {"Content-Type": "application/json"})
            return
        if self.path.endswith("gone.pth"):
            self.reply(404, b"")
            return
        asked = self.headers.get("Range", "")
        self.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").partition("-")[0] or 0) if asked else 0
        about = {"ETag": f'"{SHA256}"', "X-Repo-Commit": "0" * 40}
        if start >= len(CONTENT):
            self.reply(416, b"")
        else:
            about["Content-Range"] = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
            self.reply(206 if asked else 200, CONTENT[start:], about)

    do_HEAD = do_GET

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if Handler.cut else body)
        self.close_connection = True
        Handler.cut = False

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
        running.address = f"http://127.0.0.1:{running.server_port}"  # type: ignore[attr-defined]
        running.files = ["model.pth"]  # type: ignore[attr-defined]
        Handler.cut, Handler.ranges = False, []
        yield running
        running.shutdown()


def list_cached(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if not path.name.endswith(".lock"))


def test_download_is_checked_and_kept(server, tmp_path):
    text = f"{server.address}/a/model.pth#sha256={SHA256}"
    path = resolve_source(text)
    assert Path(path).read_bytes() == CONTENT
    assert resolve_source(text) == path and len(Handler.ranges) == 1
    Path(path).write_bytes(b"damaged")
    assert Path(resolve_source(text)).read_bytes() == CONTENT
    assert list_cached(tmp_path / "hub" / "occluded_reid") == [Path(path).name]


def test_download_is_resumed(server):
    text = f"{server.address}/model.pth#sha256={SHA256}"
    Handler.cut = True
    with pytest.raises(UserError, match="cannot download .*Try again later: what has arrived"):
        resolve_source(text)
    assert Path(resolve_source(text)).read_bytes() == CONTENT
    assert Handler.ranges == ["", f"bytes={len(CONTENT) // 2}-"]


def test_another_checksum_keeps_nothing(server, tmp_path):
    with pytest.raises(UserError, match=f"has the checksum {SHA256}, not {'0' * 64}"):
        resolve_source(f"{server.address}/model.pth#sha256={'0' * 64}")
    assert list_cached(tmp_path / "hub" / "occluded_reid") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gone.pth", r"there are no weights gone.pth; expected a file, package:NAME"),
        ("https://x.org/a.pth", "must end in #sha256=HEX, the file's checksum of 64"),
        ("https://x.org/a.pth#sha256=12", "must end in #sha256=HEX, the file's checksum of 64"),
        (
            f"http://127.0.0.1:9/a.pth#sha256={SHA256}",
            "cannot download .*refused.*name the file",
        ),
        ("hf://only", "names no repository; expected hf://USER/REPO"),
        ("package:no_such_package", "no package 'no_such_package' is installed"),
        ("package:", "no package '' is installed"),
    ],
)
def test_a_mistake_is_named(text, message, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=message):
        resolve_source(text)


def test_missing_file_on_the_server(server):
    with pytest.raises(UserError, match="cannot download .*404"):
        resolve_source(f"{server.address}/gone.pth#sha256={SHA256}")


def test_hub(server, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE",
        server.address + "/{repo_id}/resolve/{revision}/{filename}",
    )  # fmt: skip
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    path = resolve_source("hf://user/repo")
    assert Path(path).name == "model.pth" and Path(path).read_bytes() == CONTENT
    with pytest.raises(UserError, match="has not the checksum 0000"):
        resolve_source(f"hf://user/repo/model.pth#sha256={'0' * 64}")
    server.files = ["a.pth", "b.pth"]
    with pytest.raises(UserError, match="2 weights files; name one by hf://user/repo/FILE: a"):
        resolve_source("hf://user/repo")
    server.files = ["a.pth", "b.pth", "model.safetensors"]
    assert resolve_source("hf://user/repo").endswith("model.safetensors")


def test_package(tmp_path, monkeypatch):
    package = tmp_path / "with_weights"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="package:with_weights holds no weights file"):
        resolve_source("package:with_weights")
    (package / "models" / "a.pth").touch()
    assert resolve_source("package:with_weights") == str(package / "models" / "a.pth")
    (package / "b.safetensors").touch()
    with pytest.raises(UserError, match="2 weights files; name one by package:with_weights:FILE"):
        resolve_source("package:with_weights")
    assert resolve_source("package:with_weights:models/a.pth").endswith("a.pth")
    with pytest.raises(UserError, match="no file c.pth; its weights files: b.safetensors, models"):
        resolve_source("package:with_weights:c.pth")
