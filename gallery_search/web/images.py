"""Images from outside: which are decoded, which are rejected, and how the page shows them."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import queue
import resource
import signal
import struct
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

from PIL import Image

from occluded_reid.data.images import FORMATS, BrokenImage, decode_content, read_content
from occluded_reid.utils.errors import UserError

MAX_BYTES = 10 * 2**20
MAX_PIXELS = 25_000_000
SECONDS = 5.0  # to decode an upload
MEMORY = 768 * 2**20  # bytes to decode one in
GRACE = 10.0  # seconds for all but the decoding
WAIT = 10.0  # seconds for a free process
SIZES = {"small": (320, 640), "large": (960, 1280)}  # maximum width and height on the page
_SIZE = struct.Struct("<II")


class RequestError(UserError):
    """A request is invalid; whoever sent it may see the reason."""


class Decoder:
    """Decode uploads in processes of their own, which are ended if they need too much.

    Each upload gets a new process, a child of one of ``count`` processes that are forked here:
    create it before the model is loaded and before threads are started.
    """

    def __init__(self, count: int = 2):
        self._free: queue.Queue[Connection] = queue.Queue()
        for _ in range(count):
            self._free.put(_start_process())

    def decode(self, content: bytes) -> Image.Image:
        """Return the pixels (mode RGB) of a file's content, whatever its name.

        Raises:
            RequestError: No image, one that needs more than ``SECONDS`` or ``MEMORY``, or no free
                process within ``WAIT`` seconds.
        """
        if len(content) > MAX_BYTES:
            raise RequestError(f"The picture is larger than {MAX_BYTES // 2**20} MB.")
        try:
            pipe = self._free.get(timeout=WAIT)
        except queue.Empty:
            raise RequestError("Too many pictures are being read. Try again in a minute.") from None
        reply = b""
        try:
            pipe.send_bytes(content)
            if pipe.poll(SECONDS + GRACE):
                reply = pipe.recv_bytes()
        except (OSError, EOFError):
            pass  # the process was ended from outside
        finally:
            self._free.put(pipe if reply else _start_process())
        if reply[:1] != b"I":
            reason = reply[1:].decode() or "it could not be read"
            raise RequestError(
                f"This picture cannot be used: {reason}. Choose a photograph in one of the formats "
                f"{', '.join(FORMATS)}, with at most {MAX_PIXELS // 10**6} million pixels."
            )
        size = _SIZE.unpack_from(reply, 1)
        return Image.frombytes("RGB", size, reply[1 + _SIZE.size :])


def _start_process() -> Connection:
    ours, theirs = Pipe()
    fork = multiprocessing.get_context("fork")
    fork.Process(target=_serve, args=(theirs, ours), daemon=True).start()
    theirs.close()
    return ours


def _serve(pipe: Connection, other_end: Connection) -> None:
    """Decode what arrives, each in a child, until the server closes the other end."""
    other_end.close()  # the copy that fork made
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send_bytes(_decode_in_child(pipe.recv_bytes(MAX_BYTES)))


def _decode_in_child(content: bytes) -> bytes:
    reader, writer = Pipe(duplex=False)
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            writer.send_bytes(_decode(content))
        os._exit(0)
    writer.close()
    try:
        return reader.recv_bytes() if reader.poll(SECONDS) else b"Eit takes too long to read"
    except EOFError:
        return b"Eit needs too much memory"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        reader.close()


def _decode(content: bytes) -> bytes:
    """Return ``I``, width, height and pixels, or ``E`` and a reason."""
    with contextlib.suppress(OSError):  # /proc is Linux's
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    try:
        image = decode_content(content, max_pixels=MAX_PIXELS)
        return b"I" + _SIZE.pack(*image.size) + image.tobytes()
    except MemoryError:
        return b"Eit needs too much memory"
    except BrokenImage as error:
        return b"E" + error.reason.encode()


def read_gallery_image(folder: Path, path: str) -> Image.Image:
    """Read an image of a gallery's folder; the relative path is from the index.

    Raises:
        RequestError: No image, or one outside of the folder, to which a link or ``..`` may lead.
    """
    root, target = (Path(os.path.realpath(each)) for each in (folder, folder / path))
    if not target.is_relative_to(root):
        raise RequestError(f"{path} leads out of the gallery's folder")
    try:
        return decode_content(read_content(target), max_pixels=MAX_PIXELS)
    except BrokenImage as error:
        raise RequestError(f"{path} cannot be read ({error.reason})") from error


def make_jpeg(image: Image.Image, size: str) -> bytes:
    """Return a JPEG of one of :data:`SIZES` that holds pixels only, no metadata."""
    small = image.copy()
    small.thumbnail(SIZES[size])
    small.info = {}  # Pillow would write a comment again
    stream = io.BytesIO()
    small.save(stream, format="JPEG", quality=88)
    return stream.getvalue()
