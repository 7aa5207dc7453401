"""Pictures from strangers: what is read, what is refused, and what the page shows of them."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from PIL import Image

from occluded_reid.data.images import READ_ERRORS, read_rgb
from occluded_reid.utils.errors import UserError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
MOST_BYTES = 10 * 2**20
MOST_PIXELS = 25_000_000
THUMBNAIL = (192, 384)  # width and height at most


class PictureError(UserError):
    """A picture that is not read, for a reason that may be told to whoever sent it."""


def decoded(content: bytes) -> Image.Image:
    """Return the pixels (mode RGB) of a file, which is known by its content alone.

    Raises:
        PictureError: it is too large, or no picture of one of ``FORMATS``.
    """
    if len(content) > MOST_BYTES:
        raise PictureError(
            f"The picture has more than {MOST_BYTES // 2**20} MiB; cut out the person, or save it "
            "smaller."
        )
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
        if width * height > MOST_PIXELS:
            raise Image.DecompressionBombError
        stream: Any = io.BytesIO(content)
        return read_rgb(stream)
    except Image.DecompressionBombError as error:
        raise PictureError(
            f"The picture has more than {MOST_PIXELS // 10**6} million pixels; cut out the person."
        ) from error
    except READ_ERRORS as error:
        raise PictureError(
            "This is no picture, or a broken one; choose a file in one of the formats "
            f"{', '.join(FORMATS)}."
        ) from error


def gallery_picture(folder: Path, path: str) -> Image.Image:
    """Read a picture of a gallery.

    Args:
        folder: of the gallery.
        path: below it, as an index has it.

    Raises:
        PictureError: no such file, no picture, or a place outside of the folder, to which a
            symbolic link or ``..`` may lead.
    """
    root, place = (Path(os.path.realpath(each)) for each in (folder, folder / path))
    if not place.is_relative_to(root):
        raise PictureError(f"{path} leads out of the gallery's folder")
    if not place.is_file():  # a pipe would never end
        raise PictureError(f"{path} is not there")
    try:
        with place.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise PictureError(f"{path} cannot be read") from error
    return decoded(content)


def thumbnail(image: Image.Image) -> bytes:
    """Return a small JPEG of the pixels; nothing else of the file is in it."""
    small = image.copy()
    small.thumbnail(THUMBNAIL)
    small.info = {}  # a comment would be written again
    stream = io.BytesIO()
    small.save(stream, format="JPEG", quality=85)
    return stream.getvalue()
