"""Finding and reading image files."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from occluded_reid.utils.errors import UserError, explain, explain_read_errors

READ_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for a file that is no image, or a part of one."""
OCCLUDER_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
# Pillow opens 16-bit gray images in one of these modes; its own conversion to RGB clips to white
_16_BIT_MODES = ("I", "I;16", "I;16B", "I;16L")


def explain_image_errors(thing: str, advice: str) -> AbstractContextManager[None]:
    """Turn :data:`READ_ERRORS` into a UserError; see :func:`explain_read_errors`."""
    return explain_read_errors(thing, advice, READ_ERRORS)


def find_images(folder: Path, advice: str) -> list[Path]:
    """List the visible images directly in a folder of occluders or frames, sorted by name.

    Without any, a UserError ends in ``advice``.
    """
    with explain_read_errors(folder, advice):
        files = sorted(folder.iterdir())
    visible = (path for path in files if not path.name.startswith("."))
    images = [path for path in visible if path.suffix.lower() in OCCLUDER_SUFFIXES]
    if not images:
        raise UserError(f"{folder} holds no images ({', '.join(OCCLUDER_SUFFIXES)}); {advice}")
    return images


def read_rgb(path: str | os.PathLike[str]) -> Image.Image:
    """Read an image as 8-bit RGB, upright according to its EXIF data.

    Gray, CMYK, palette and transparent images are converted; of 16 bits the upper 8 are kept.

    Raises:
        OSError, SyntaxError, ValueError, DecompressionBombError: see :data:`READ_ERRORS`.
        MemoryError, RuntimeError: the machine is at fault, not the file.

    >>> read_rgb("0002_c1s1_000451_03.jpg").size  # doctest: +SKIP
    (64, 128)
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode in _16_BIT_MODES:
                values = np.asarray(upright).astype(np.int64)
                upright = Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8))
            return upright.convert("RGB")
    except OSError as error:
        if explain(error):  # too many open files, say: an image is not to be skipped for that
            raise RuntimeError(f"{error}") from error
        raise
