"""Checks image files by their bytes: complete or truncated, pixel format, content."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from PIL import ImageFile

from occluded_reid.data.digest import digest_pixels
from occluded_reid.data.images import (
    BrokenImage,
    count_bits,
    decode_content,
    open_content,
    read_content,
)
from occluded_reid.utils.progress import progress

logger = logging.getLogger(__name__)

_END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_DEEP, _FLOAT = "16-bit", "floating-point"
_TAIL = 4096  # some cameras write more bytes after the end marker
_THREADS_PER_CORE = 2  # one waits for the disk while the other computes


class FileReport(NamedTuple):
    """The result of a check of one file."""

    path: str
    digest: bytes = b""  # of its content
    pixels: int | None = None  # their digest, if they were decoded on request
    format: str = ""  # its pixel format if that is not 8-bit RGB
    fault: str = ""  # why it cannot be read


def inspect_files(paths: Sequence[str], *, decode: bool = False) -> list[FileReport]:
    """Inspect files in threads, with a progress bar; see :func:`inspect_file`."""
    with ThreadPoolExecutor(_THREADS_PER_CORE * (os.cpu_count() or 1)) as pool:
        reports = pool.map(lambda path: inspect_file(path, decode=decode), paths)
        tracked = progress(
            reports, total=len(paths), description="Checking images", unit="images", logger=logger
        )
        return list(tracked)


def inspect_file(path: str, *, decode: bool = False) -> FileReport:
    """Inspect the structure of a file: signature, header, end marker.

    Pixels are decoded with ``decode``, where there is no end marker (a truncated file, TIFF, BMP),
    and where the range of the values decides whether they can be read (16 bits, floats).
    """
    digest, pixels = b"", None
    try:
        content = read_content(path)
        digest = hashlib.blake2b(content, digest_size=16).digest()
        with open_content(content) as image:
            end, kind = _END_MARKERS.get(image.format or ""), _name_format(image)
        is_whole = end is not None and content.rfind(end, max(0, len(content) - _TAIL)) >= 0
        if decode:
            pixels = digest_pixels(decode_content(content))
        elif not is_whole or kind in (_DEEP, _FLOAT):
            decode_content(content)
        return FileReport(path, digest, pixels, format=kind)
    except BrokenImage as error:
        return FileReport(path, digest, fault=f"cannot be read: {error.reason}")


def _name_format(image: ImageFile.ImageFile) -> str:
    if count_bits(image) > 8:
        return _DEEP
    names = {"RGB": "", "L": "gray", "1": "black and white", "P": "palette", "RGBA": "transparent"}
    return {**names, "F": _FLOAT}.get(image.mode, image.mode)
