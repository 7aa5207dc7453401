"""What can be said of an image file from its bytes: whole or cut off, what kind, which content."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image

from occluded_reid.data.images import READ_ERRORS
from occluded_reid.utils.progress import progress

logger = logging.getLogger(__name__)

_END = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_TAIL = 4096  # cameras write some bytes after the end
_THREADS_PER_CORE = 2  # one waits for the disk while the other works


class FileFacts(NamedTuple):
    """One image file.

    Attributes:
        path: as it was given.
        digest: of its bytes; equal for exact duplicates.
        kind: how it differs from an RGB image of 8 bits, which reading converts; ``""`` if not.
        fault: why it cannot be read; ``""`` if nothing is wrong.
    """

    path: str
    digest: bytes = b""
    kind: str = ""
    fault: str = ""


def inspect_files(paths: Sequence[str], *, decode: bool = False) -> list[FileFacts]:
    """Inspect many files, several at once, with a progress bar.

    Args:
        paths: image files.
        decode: see :func:`inspect_file`.

    Returns:
        The facts in the order of ``paths``.
    """
    with ThreadPoolExecutor(_THREADS_PER_CORE * (os.cpu_count() or 1)) as pool:
        facts = pool.map(lambda path: inspect_file(path, decode=decode), paths)
        return list(
            progress(
                facts, total=len(paths), description="Checking images", unit="images", logger=logger
            )
        )


def inspect_file(path: str, *, decode: bool = False) -> FileFacts:
    """Read a file and look at its structure: signature, header, end.

    Args:
        path: the file.
        decode: decode the pixels of every file. Otherwise only of those whose structure does not
            tell whether they are whole (TIFF, BMP).
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        return FileFacts(path, fault=f"cannot be read: {error.strerror}")
    if not content:
        return FileFacts(path, fault="is empty (0 bytes)")
    digest = hashlib.blake2b(content, digest_size=16).digest()
    try:
        with Image.open(io.BytesIO(content)) as image:
            end = _END.get(image.format or "")
            if end is not None and content.rfind(end, max(0, len(content) - _TAIL)) < 0:
                return FileFacts(path, digest, fault=f"{image.format} that is cut off")
            if decode or end is None:
                image.load()
            return FileFacts(path, digest, kind=_kind(image))
    except READ_ERRORS as error:
        if isinstance(error, Image.UnidentifiedImageError):
            return FileFacts(path, digest, fault=f"is no image; it begins with {content[:12]!r}")
        return FileFacts(path, digest, fault=f"cannot be decoded: {error}")


def _kind(image: Image.Image) -> str:
    if image.mode == "RGB":
        return ""
    names = {"L": "grey", "1": "black and white", "P": "palette", "RGBA": "transparent"}
    return names.get(image.mode, "16-bit" if image.mode.startswith("I") else image.mode)
