"""Images from outside: which are decoded, which are rejected, and how the page shows them."""

from __future__ import annotations

import io
import os
from pathlib import Path

from PIL import Image

from occluded_reid.data.images import FORMATS, BrokenImage, decode_content, read_content
from occluded_reid.utils.errors import UserError

MAX_BYTES = 10 * 2**20
MAX_PIXELS = 25_000_000
THUMBNAIL = (192, 384)  # maximum width and height


class RequestError(UserError):
    """A request is invalid; whoever sent it may see the reason."""


def decode_image(content: bytes) -> Image.Image:
    """Return the pixels (mode RGB) of a file's content, whatever its name, or a RequestError."""
    if len(content) > MAX_BYTES:
        raise RequestError(f"The image is larger than {MAX_BYTES // 2**20} MiB; crop the person.")
    try:
        return decode_content(content, max_pixels=MAX_PIXELS)
    except BrokenImage as error:
        raise RequestError(
            f"This is not a valid image: {error.reason}. Choose a file in one of the formats "
            f"{', '.join(FORMATS)}, with at most {MAX_PIXELS // 10**6} million pixels."
        ) from error


def read_gallery_image(folder: Path, path: str) -> Image.Image:
    """Read an image of a gallery's folder; the relative path is from the index.

    Raises:
        RequestError: No image, or one outside of the folder, to which a link or ``..`` may lead.
    """
    root, target = (Path(os.path.realpath(each)) for each in (folder, folder / path))
    if not target.is_relative_to(root):
        raise RequestError(f"{path} leads out of the gallery's folder")
    try:
        return decode_image(read_content(target))
    except BrokenImage as error:
        raise RequestError(f"{path} cannot be read ({error.reason})") from error


def make_thumbnail(image: Image.Image) -> bytes:
    """Return a small JPEG that holds pixels only, no metadata."""
    small = image.copy()
    small.thumbnail(THUMBNAIL)
    small.info = {}  # Pillow would write a comment again
    stream = io.BytesIO()
    small.save(stream, format="JPEG", quality=85)
    return stream.getvalue()
