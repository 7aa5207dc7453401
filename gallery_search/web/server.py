"""The page's server: which requests it accepts, and how much of what it bears."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import secrets
import socket
import sys
import time
import webbrowser
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gallery_search.web.app import build_app
from gallery_search.web.search import GallerySearch
from occluded_reid.utils.errors import UserError

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 300
MAX_SILENT = 150  # connections that have sent no request; the oldest gives way
HEAD_SECONDS = 10  # for a request to arrive, without its body
REQUEST_SECONDS = 40  # for all of it and the response
SHUTDOWN_SECONDS = 3  # for open connections
RECORDS_PER_MINUTE = 20  # of the log

HEADERS = [
    (b"content-security-policy",
     b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
     b"connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
    (b"connection", b"close"),
]  # fmt: skip
LINK = (
    "<!doctype html><meta charset=utf-8><title>Gallery search</title>"
    "<p>Another site led here. <a href=''>Open the search</a>"
)


class BoundedProtocol(H11Protocol):
    """One request per connection, within seconds; silent connections give way to new ones."""

    silent: dict[BoundedProtocol, None] = {}  # in the order of their arrival

    def connection_made(self, transport: Any) -> None:
        """Start the clocks."""
        super().connection_made(transport)
        self.silent[self] = None
        if len(self.silent) > MAX_SILENT:
            oldest = next(iter(self.silent))
            del self.silent[oldest]
            oldest.transport.close()
        self._clocks = [
            self.loop.call_later(HEAD_SECONDS, self._end_if_silent),
            self.loop.call_later(REQUEST_SECONDS, transport.abort),
        ]

    def _end_if_silent(self) -> None:
        if self.cycle is None:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Count a connection as silent until its request is there."""
        super().data_received(data)
        if self.cycle is not None:
            self.silent.pop(self, None)

    def connection_lost(self, error: Exception | None) -> None:
        """Stop the clocks."""
        self.silent.pop(self, None)
        for clock in self._clocks:
            clock.cancel()
        super().connection_lost(error)


class Guard:
    """Accept only requests that the page itself, or its user, makes; an ASGI application.

    Args:
        app: The page.
        hosts: Accepted host names, against DNS rebinding; None accepts any, and needs a token.
        token: What a visitor must know; ``""`` if only this machine can reach the page.
    """

    def __init__(self, app: Any, hosts: frozenset[str] | None, token: str = ""):
        self._app = app
        self._hosts = hosts
        self._token = token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":  # a web socket
            return await send({"type": "websocket.close", "code": 1008})

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *HEADERS]}
            await send(message)

        if (refusal := self._check(scope)) is None:
            return await self._app(scope, receive, send_with_headers)
        status, text, headers = refusal
        headers = [(b"content-type", b"text/html; charset=utf-8"), *headers]
        start = {"type": "http.response.start", "status": status, "headers": headers}
        await send_with_headers(start)
        await send_with_headers({"type": "http.response.body", "body": text.encode()})

    def _check(self, scope: Any) -> tuple[int, str, list[tuple[bytes, bytes]]] | None:
        """Return the status, text and headers of a refusal, or None."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self._hosts is not None and re.sub(r":\d+$", "", host) not in self._hosts:
            return 403, "This page has another address.", []
        if (origin := headers.get(b"origin")) is not None and urlsplit(origin).netloc != host:
            return 403, "Another site asked for this.", []
        if headers.get(b"sec-fetch-site", "none") not in ("same-origin", "none"):
            is_link = (scope["method"], headers.get(b"sec-fetch-dest")) == ("GET", "document")
            return (200, LINK, []) if is_link else (403, "Another site asked for this.", [])
        return self._check_token(scope, headers) if self._token else None

    def _check_token(
        self, scope: Any, headers: dict[bytes, str]
    ) -> tuple[int, str, list[tuple[bytes, bytes]]] | None:
        try:
            cookie = SimpleCookie(headers.get(b"cookie", "")).get("token")
        except CookieError:
            cookie = None
        if cookie and secrets.compare_digest(cookie.value.encode(), self._token.encode()):
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if not secrets.compare_digest(given.encode(), self._token.encode()):
            return 403, "Open the address that the program printed at its start.", []
        value = f"token={self._token}; HttpOnly; SameSite=Strict; Path=/".encode()
        return 303, "", [(b"set-cookie", value), (b"location", b"/")]


class SparingFilter(logging.Filter):
    """Let so many records a minute through, so that odd requests do not fill the log."""

    _minute, _count = 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written."""
        if (minute := int(time.monotonic() / 60)) != self._minute:
            self._minute, self._count = minute, 0
        self._count += 1
        return self._count <= RECORDS_PER_MINUTE


def is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens (port 0: on a free one), or raise a UserError if it cannot."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(
            f"the page cannot be served at {host}, port {port}: {error}; choose another --port, or "
            "--host 127.0.0.1"
        ) from error


def serve(
    search: GallerySearch, listening: socket.socket, host: str, top: int = 40,
    *, open_browser: bool = False,
) -> None:  # fmt: skip
    """Serve the page on a socket of :func:`open_socket` until SIGINT or SIGTERM."""
    local = is_local(host)
    names = frozenset(("localhost", "127.0.0.1", "[::1]", host)) if local else None
    token = "" if local else secrets.token_urlsafe(24)
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    address = f"http://{f'[{name}]' if ':' in name else name}:{listening.getsockname()[1]}"
    if token:
        logger.warning(
            f"--host {host}: whoever knows the address with its token can search the gallery "
            "and see its images, and there is no encryption"
        )
        address += f"/?token={quote(token)}"
    config = uvicorn.Config(
        Guard(build_app(search, top), names, token), http=BoundedProtocol, ws="none",
        log_level="warning", limit_concurrency=MAX_CONNECTIONS, proxy_headers=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS, server_header=False,
    )  # fmt: skip
    sparing = SparingFilter()
    for each in (logging.getLogger("uvicorn.error"), logging.getLogger("gallery_search.web")):
        each.addFilter(sparing)
    print(address, flush=True)
    logger.info("Open this address in a browser; Ctrl-C ends the program")
    if open_browser and has_display():
        webbrowser.open(address)  # the socket listens: the browser waits
    uvicorn.Server(config).run(sockets=[listening])


def has_display() -> bool:
    """Whether a browser would open in a window, not in this terminal."""
    displays = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform == "darwin" or any(os.environ.get(name) for name in displays)
