"""From an image file of any kind to eight bits of red, green and blue."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps

from occluded_reid.utils.errors import UserError

READ_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What reading a file that is no image, or half of one, may raise."""

# Pillow opens a grey image of 16 bits as one of these; converting it to RGB would clip it to white
_SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L")


@contextlib.contextmanager
def read_errors_named(thing: str, advice: str) -> Iterator[None]:
    """Turn :data:`READ_ERRORS` into a :class:`UserError`.

    Args:
        thing: what is read, such as ``"the image a.jpg"``.
        advice: what to do if that fails.
    """
    try:
        yield
    except READ_ERRORS as error:
        raise UserError(
            f"cannot read {thing} ({type(error).__name__}: {error}); {advice}"
        ) from error


def read_rgb(path: str | os.PathLike[str]) -> Image.Image:
    """Read an image, upright as its EXIF data say.

    Grey, CMYK, palette and transparent images are converted; of 16 bits the upper 8 are kept.

    Args:
        path: a file of any format that Pillow reads.

    Returns:
        The pixels (mode RGB), the file closed.

    Raises:
        OSError, SyntaxError, ValueError, DecompressionBombError: see :data:`READ_ERRORS`.
    """
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in _SIXTEEN_BITS:
            values = np.asarray(upright).astype(np.int64)
            upright = Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8))
        return upright.convert("RGB")
