"""The server of the page: what it lets in, and what it lets out."""

from __future__ import annotations

import contextlib
import importlib.util
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

from gallery_search.web.pictures import MOST_BYTES
from gallery_search.web.search import GallerySearch
from occluded_reid.utils.errors import UserError

logger = logging.getLogger(__name__)

MOST_CONNECTIONS = 500
MOST_LETTERS = MOST_BYTES * 4 // 3 + 2**16  # of a request: a picture as text, and the rest
GOODBYE = 3  # seconds that open connections get when the server ends

# What the page itself asks for. Gradio can do more: files, uploads, downloads from elsewhere.
PAGES = frozenset(
    ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt",
     "/gradio_api/info", "/gradio_api/startup-events", "/gradio_api/queue/join",
     "/gradio_api/queue/data", "/gradio_api/reset", "/gradio_api/cancel")
)  # fmt: skip
FOLDERS = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/")

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; "
        "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """Lets through what the page needs, and nothing else; an ASGI application.

    Args:
        app: the page.
        hosts: names by which the server may be called, so that no other site's name can be made to
            lead here; None for any name.
    """

    def __init__(self, app: Any, hosts: frozenset[str] | None):
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        refused = self._refusal(scope) if scope["type"] == "http" else 404
        if refused:
            return await _refuse(scope, send, refused)

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *_headers()]}
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _refusal(self, scope: Any) -> int:
        """Return the status of a request that is refused, or 0."""
        headers = dict(scope["headers"])
        host = re.sub(r":\d+$", "", headers.get(b"host", b"").decode("latin-1"))
        if self._hosts is not None and host not in self._hosts:
            return 403
        opened = headers.get(b"sec-fetch-mode") == b"navigate"
        if not opened and headers.get(b"sec-fetch-site", b"none") not in (b"same-origin", b"none"):
            return 403  # a script of another site, in the browser of one who may come here
        path = scope["path"]
        if path not in PAGES and not path.startswith(FOLDERS) or ".." in path:
            return 404
        if scope["method"] in ("GET", "HEAD"):
            return 0
        length = headers.get(b"content-length", b"")
        if not length.isdigit():
            return 411
        return 413 if int(length) > MOST_LETTERS else 0


def _headers() -> Iterator[tuple[bytes, bytes]]:
    return ((name.encode(), value.encode()) for name, value in HEADERS.items())


async def _refuse(scope: Any, send: Any, status: int) -> None:
    if scope["type"] != "http":  # a web socket
        return await send({"type": "websocket.close", "code": 1008})
    headers = [(b"content-type", b"text/plain"), (b"connection", b"close"), *_headers()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"refused"})


def check_installed() -> None:
    """Look for Gradio.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError(
            "the page needs Gradio, which is not installed; install the extra 'web': "
            "pip install '.[web]'"
        )


def is_local(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens at the address.

    Raises:
        UserError: there is no such address, or something else listens there.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(
            f"the page cannot be served at {host}, port {port}: {error}; choose another --port, or "
            "--host 127.0.0.1"
        ) from error


def serve(search: GallerySearch, host: str, port: int, top: int) -> None:
    """Serve the page until the process is told to end.

    Args:
        search: answers the questions.
        host: the address to listen at.
        port: 0 for one that is free.
        top: how many pictures the page shows at first.

    Raises:
        UserError: Gradio is missing, or the address cannot be had.
    """
    check_installed()
    with bound_socket(host, port) as listening, _own_folder():
        import uvicorn

        names = frozenset(("localhost", "127.0.0.1", "[::1]", host)) if is_local(host) else None
        if names is None:
            logger.warning(
                f"--host {host}: everybody who can reach this machine can search the gallery and "
                "look at its pictures; there is no password, and nothing is encrypted"
            )
        config = uvicorn.Config(
            Guard(_application(search, top), names),
            log_level="warning",
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=GOODBYE,
            server_header=False,
        )
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{listening.getsockname()[1]}", flush=True)
        uvicorn.Server(config).run(sockets=[listening])


def _application(search: GallerySearch, top: int) -> Any:
    import gradio
    from fastapi import FastAPI

    from gallery_search.web.page import build_page, theme

    bare = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    return gradio.mount_gradio_app(
        bare, build_page(search, top), path="/", allowed_paths=[], show_error=False,
        footer_links=[], run_history=False, ssr_mode=False, pwa=False, mcp_server=False,
        enable_monitoring=False, max_file_size=0,
        theme=theme(),
    )  # fmt: skip


@contextlib.contextmanager
def _own_folder() -> Iterator[None]:
    """Let Gradio write nowhere but to a folder that goes with the server; SIGTERM ends it too."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with TemporaryDirectory(prefix="gallery-search-") as folder:
            os.environ["GRADIO_TEMP_DIR"] = folder
            os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
            yield
    finally:
        signal.signal(signal.SIGTERM, before)
