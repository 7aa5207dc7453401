"""The page's server: which requests it accepts."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from tempfile import TemporaryDirectory
from typing import Any

from gallery_search.web.images import MAX_BYTES
from gallery_search.web.search import GallerySearch
from occluded_reid.utils.errors import UserError

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 500
MAX_REQUEST = MAX_BYTES * 4 // 3 + 2**16  # bytes: an image in base64, and the rest
SHUTDOWN_SECONDS = 3  # for open connections

# What the page itself requests. Gradio also serves files, uploads and downloads.
PAGES = frozenset(
    ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt",
     "/gradio_api/info", "/gradio_api/startup-events", "/gradio_api/queue/join",
     "/gradio_api/queue/data", "/gradio_api/reset", "/gradio_api/cancel")
)  # fmt: skip
FOLDERS = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/")

HEADERS = [
    (b"Content-Security-Policy",
     b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
     b"style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; "
     b"object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Referrer-Policy", b"no-referrer"),
    (b"Cross-Origin-Resource-Policy", b"same-origin"),
]  # fmt: skip


class Guard:
    """Accept only the requests that the page needs; an ASGI application.

    ``hosts`` are the accepted host names, against DNS rebinding; None accepts any.
    """

    def __init__(self, app: Any, hosts: frozenset[str] | None):
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":  # a web socket
            return await send({"type": "websocket.close", "code": 1008})
        if status := self._check(scope):
            headers = [(b"content-type", b"text/plain"), (b"connection", b"close"), *HEADERS]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            return await send({"type": "http.response.body", "body": b"refused"})

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *HEADERS]}
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _check(self, scope: Any) -> int:
        """Return the status code of a refused request, or 0."""
        headers = dict(scope["headers"])
        host = re.sub(r":\d+$", "", headers.get(b"host", b"").decode("latin-1"))
        if self._hosts is not None and host not in self._hosts:
            return 403
        is_link = headers.get(b"sec-fetch-mode") == b"navigate"
        if not is_link and headers.get(b"sec-fetch-site", b"none") not in (b"same-origin", b"none"):
            return 403  # a script of another site in a visitor's browser
        path = scope["path"]
        if path not in PAGES and not path.startswith(FOLDERS) or ".." in path:
            return 404
        if scope["method"] in ("GET", "HEAD"):
            return 0
        length = headers.get(b"content-length", b"")
        if not length.isdigit():
            return 411
        return 413 if int(length) > MAX_REQUEST else 0


def is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens on the address, or raise a UserError if it is not available."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(
            f"the page cannot be served at {host}, port {port}: {error}; choose another --port, or "
            "--host 127.0.0.1"
        ) from error


def serve(search: GallerySearch, host: str, port: int, top: int) -> None:
    """Serve the page until SIGINT or SIGTERM, at port 0 on a free one, with ``top`` images."""
    with open_socket(host, port) as listening, _temporary_folder():
        import gradio
        import uvicorn
        from fastapi import FastAPI

        from gallery_search.web.page import build_page, build_theme

        names = frozenset(("localhost", "127.0.0.1", "[::1]", host)) if is_local(host) else None
        if names is None:
            logger.warning(
                f"--host {host}: everyone who can reach this machine can search the gallery and "
                "see its images; there is no password and no encryption"
            )
        app = gradio.mount_gradio_app(
            FastAPI(openapi_url=None, docs_url=None, redoc_url=None), build_page(search, top),
            path="/", allowed_paths=[], show_error=False, footer_links=[], run_history=False,
            ssr_mode=False, pwa=False, mcp_server=False, enable_monitoring=False, max_file_size=0,
            theme=build_theme(),
        )  # fmt: skip
        config = uvicorn.Config(
            Guard(app, names), log_level="warning", limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS, server_header=False,
        )  # fmt: skip
        name = f"[{host}]" if ":" in host else host
        print(f"http://{name}:{listening.getsockname()[1]}", flush=True)
        uvicorn.Server(config).run(sockets=[listening])


@contextlib.contextmanager
def _temporary_folder() -> Iterator[None]:
    """Confine Gradio's files to a folder that is deleted at the end, also on SIGTERM."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with TemporaryDirectory(prefix="gallery-search-") as folder:
            os.environ["GRADIO_TEMP_DIR"] = folder
            os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
            yield
    finally:
        signal.signal(signal.SIGTERM, before)
