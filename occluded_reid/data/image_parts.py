"""The parts of an image file: segments of a JPEG, chunks of a PNG or WebP, tags of a TIFF.

Files are taken apart without a decoder, and without trust in what they say of themselves.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

MAX_PARTS = 20_000  # segments, chunks, strips or tiles

_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd7])")
SCAN, END = 0xDA, 0xD9
_TIFF_TAGS = frozenset(
    (256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324,
     325, 338, 339, 347, *range(512, 522), 529, 530, 532)
)  # fmt: skip
_TIFF_TYPES = (3, 4, 5, 7, 16)  # numbers that all libraries read alike, and bytes
_WEBP_PIXELS = (b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L")


def split_jpeg(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and bytes of each segment, a scan with its pixels, to the end of the image."""
    start = 2
    for _ in range(MAX_PARTS):
        found = _JPEG_MARKER.search(content, start)
        if found is None:
            return
        marker, end = found[1][0], found.end()
        if marker != END:
            end += int.from_bytes(content[end : end + 2], "big")
        if marker == SCAN:
            following = _JPEG_MARKER.search(content, end)
            end = following.start() if following else len(content)
        yield marker, content[found.start() : end]
        if marker == END:
            return
        start = end


def strip_metadata(content: bytes) -> bytes:
    """Return a file with what pixels, colors and orientation need, or as it is."""
    if content.startswith(b"\xff\xd8"):
        kept = [b"\xff\xd8"]
        for marker, segment in split_jpeg(content):
            is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
            is_colors = marker == 0xEE and len(segment) > 15  # Adobe's
            if is_colors or marker == 0xE1 or not is_metadata:  # 0xE1: EXIF data
                kept.append(segment)
        return b"".join(kept)
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        kept, start = [content[:8]], 8
        for _ in range(MAX_PARTS):
            end = start + 12 + int.from_bytes(content[start : start + 4], "big")
            if not (chunk := content[start:end]):
                break
            kind, is_sound = chunk[4:8], zlib.crc32(chunk[4:-4]).to_bytes(4, "big") == chunk[-4:]
            if kind[:1].isupper() or is_sound and kind in (b"tRNS", b"eXIf"):
                kept.append(chunk)
            start = end
        return b"".join(kept)
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        kept, start = [content[8:12]], 12
        for _ in range(MAX_PARTS):
            size = int.from_bytes(content[start + 4 : start + 8], "little")
            end = start + 8 + size + size % 2
            if not (chunk := content[start:end]):
                break
            if chunk[:4] in _WEBP_PIXELS or chunk[:4] == b"EXIF" and end <= len(content):
                kept.append(chunk)
            start = end
        pixels = b"".join(kept)
        return b"RIFF" + struct.pack("<I", len(pixels)) + pixels
    return content


def strip_tiff(content: bytes) -> bytes:
    """Return a TIFF with one list of tags, each once, that has what :func:`strip_metadata` keeps.

    Pillow and libtiff then read the same ones. What is no TIFF is returned as it is.
    """
    if content[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return content
    order, is_big = "<" if content.startswith(b"I") else ">", b"+" in content[:4]
    formats = ("Q", "Q", "HHQ8s") if is_big else ("I", "H", "HHI4s")
    offset, count, entry = (struct.Struct(order + each) for each in formats)
    tags: dict[int, tuple[Any, ...]] = {}
    try:
        (start,) = offset.unpack_from(content, offset.size)
        (number,) = count.unpack_from(content, start)
        for index in range(min(number, MAX_PARTS)):
            values = entry.unpack_from(content, start + count.size + index * entry.size)
            tags.setdefault(values[0], values)
    except (struct.error, OverflowError):  # it ends here
        pass
    kept = [tags[tag] for tag in sorted(_TIFF_TAGS & tags.keys()) if tags[tag][1] in _TIFF_TYPES]
    head = content[: offset.size] + offset.pack(len(content)) + content[2 * offset.size :]
    listed = b"".join(entry.pack(*values) for values in kept)
    return head + count.pack(len(kept)) + listed + offset.pack(0)
