"""Finding and reading image files: one reader, with a budget, for every command.

A file may come from a stranger. Only the formats of :data:`FORMATS` are tried, so no other program
is started; what costs far more than an honest image of a person is refused; and whatever is wrong
with a file ends in one error, :class:`BrokenImage`. Damaged metadata do not make an image broken.
"""

from __future__ import annotations

import io
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from occluded_reid.data.image_parts import MAX_PARTS, SCAN, split_jpeg, strip_metadata, strip_tiff
from occluded_reid.utils.errors import UserError, explain, explain_read_errors
from occluded_reid.utils.files import read_regular
from occluded_reid.utils.terminal import show

logger = logging.getLogger(__name__)

T = TypeVar("T")

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
     ".tif", ".tiff", ".webp")
)  # fmt: skip
"""What the name of an image ends in, in small or capital letters."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What the content of an image may be, whatever its name; of several frames the first is read."""
MAX_BYTES = 32 * 2**20
MAX_PIXELS = 40_000_000
_MAX_SCANNED = 10**9  # pixels of all scans of a JPEG together; each scan counts as a megapixel
_MAX_READS = 200_000  # Pillow parses in Python, by small reads
_MAX_EXIF = 2**17  # bytes
_MAX_NAMED = 10
_MAX_SLOW = 10**6  # pixels for a decoder that is written in Python
_SMALL_FILE = 2**20  # bytes; parsing it is short whatever it holds

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS is lower


class BrokenImage(UserError):
    """An image cannot be read; ``reason`` says why, without its name."""

    def __init__(self, reason: str, path: str | os.PathLike[str] = ""):
        super().__init__(f"cannot read the image {show(path)} ({reason}); replace or remove it")
        self.reason = reason


def is_image_name(name: str) -> bool:
    """Return whether ``name`` has the suffix of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def warn_of_files(what: str, names: Sequence[str]) -> None:
    """Warn of files, if there are any: how many ``what``, and the first names."""
    if names:
        few = ", ".join(map(show, names[:_MAX_NAMED])) + ", ..." * (len(names) > _MAX_NAMED)
        logger.warning(f"{len(names)} {what}: {few}")


def find_images(folder: Path, advice: str) -> list[Path]:
    """List the visible images directly in a folder of occluders or frames, sorted by name.

    Without any, a UserError ends in ``advice``.
    """
    with explain_read_errors(folder, advice):
        files = sorted(folder.iterdir())
    visible = [path for path in files if path.name[0] != "."]
    images = [path for path in visible if is_image_name(path.name)]
    others = [path.name for path in visible if not is_image_name(path.name)]
    warn_of_files(f"files in {folder} are passed over, by name they are no images", others)
    if not images:
        raise UserError(f"{folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}); {advice}")
    return images


def read_rgb(path: str | os.PathLike[str]) -> Image.Image:
    """Read an image as 8-bit RGB, upright according to its EXIF data; see :func:`decode_content`.

    Raises:
        BrokenImage: the file is missing, no regular file, or no image that can be read.
        MemoryError, RuntimeError: the machine is at fault, not the file.

    >>> read_rgb("0002_c1s1_000451_03.jpg").size  # doctest: +SKIP
    (64, 128)
    """
    return read_image(path, "RGB")


def read_image(
    path: str | os.PathLike[str], mode: str | None, *, upright: bool = True
) -> Image.Image:
    """Read an image in a mode of Pillow; None keeps the file's own, if that has 8 bits."""
    try:
        return decode_content(read_content(path), mode, upright=upright)
    except BrokenImage as error:
        raise BrokenImage(error.reason, path) from error


def read_content(path: str | os.PathLike[str]) -> bytes:
    """Read the bytes of a regular file, or raise :class:`BrokenImage`."""
    try:
        return read_regular(path, MAX_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        if explain(error):  # too many open files, say: an image is not to be skipped for that
            raise RuntimeError(f"{error}") from error
        raise BrokenImage(getattr(error, "strerror", None) or str(error), path) from error


def decode_content(
    content: bytes, mode: str | None = "RGB", *, upright: bool = True, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode an image file held in memory; see :func:`read_image`.

    Gray, CMYK, palette and transparent images are converted. Of 16 bits the upper 8 are kept, so
    values that leave the upper two unused (those of a camera of 10, 12 or 14 bits) are refused. Of
    floats, those in [0, 1] are scaled to 255, those in [0, 255] are taken as they are, and others
    are refused.
    """

    def decode(content: bytes) -> Image.Image:
        with _open(content, max_pixels) as image:
            bits = count_bits(image)
            image.load()
            small = _keep_8_bits(_turn_upright(image) if upright else image, bits)
            return small.convert(mode) if mode else small.copy()

    return _try_without_metadata(decode, content)


def convert_image(image: Image.Image, name: str) -> Image.Image:
    """Return an image of Pillow as 8-bit RGB by the rules of :func:`decode_content`, not turned.

    Raises :class:`BrokenImage`, also if its file was opened and turns out to be broken.
    """
    try:
        bits = count_bits(image)
        image.load()
        return _keep_8_bits(image, bits).convert("RGB")
    except BrokenImage as error:
        raise BrokenImage(error.reason, name) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise BrokenImage(f"{type(error).__name__}: {error}", name) from error


def open_content(content: bytes) -> ImageFile.ImageFile:
    """Open an image file held in memory without decoding its pixels."""
    return _try_without_metadata(lambda content: _open(content, MAX_PIXELS), content)


def count_bits(image: Image.Image) -> int:
    """Return the bits that an image has for a value: 8 (or fewer), 12 or 16 (or more)."""
    layout = str(getattr(image, "tile", "")) if image.format in ("PNG", "TIFF", "PPM") else ""
    if "I;12" in layout:
        return 12
    return 16 if image.mode.startswith("I") or re.search(r";16|, 65535\)", layout) else 8


def _try_without_metadata(use: Callable[[bytes], T], content: bytes) -> T:
    """Return ``use(content)``; if it fails, try again without what is not pixels."""
    try:
        return use(content)
    except (BrokenImage, MemoryError):
        raise
    except Exception as error:  # damaged files make Pillow raise almost anything
        bare = strip_metadata(content)
        if bare != content:
            return _try_without_metadata(use, bare)
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, UnidentifiedImageError):
            start = f"starts with {content[:12]!r}" if content else "is empty"
            reason = f"it is no image; it {start}"
        raise BrokenImage(reason) from error


def _open(content: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """Open an image and hold it against the budget, before its pixels are decoded."""
    content = strip_tiff(content)
    stream = io.BytesIO(content) if len(content) < _SMALL_FILE else _BoundedStream(content)
    too_large = f"it has more than {max_pixels / 1e6:g} million pixels"
    try:
        image: Any = Image.open(stream, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BrokenImage(too_large) from error
    pixels = image.width * image.height
    if image.format == "TIFF":  # a tile may be larger than the image
        tile = (image.tag_v2.get(tag) for tag in (322, 323))
        pairs = zip(tile, image.size, strict=True)
        pixels = math.prod(max(pair) if isinstance(pair[0], int) else pair[1] for pair in pairs)
    if pixels > max_pixels:
        raise BrokenImage(too_large)
    if image.tile and image.tile[0][0] in Image.DECODERS and pixels > _MAX_SLOW:
        raise BrokenImage(f"its kind of {image.format} is read slowly, and it is large")
    if len(image.tile) > MAX_PARTS:
        raise BrokenImage(f"it has more than {MAX_PARTS} parts")
    if image.format in ("JPEG", "MPO"):
        _check_scans(content, _MAX_SCANNED // max(pixels, 10**6))
    return image


class _BoundedStream(io.BytesIO):
    """A file in memory that can be read so many times only: each of its parts takes a few reads."""

    _left = _MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise BrokenImage("it has too many parts")
        return super().read(size)


def _check_scans(content: bytes, allowed: int) -> None:
    """Refuse a JPEG of many scans: each of them goes over all pixels again."""
    if content.count(b"\xff\xda") > allowed:  # a thumbnail, or what follows, may hold some, too
        markers = [marker for marker, _ in split_jpeg(content)]
        if markers.count(SCAN) > allowed or len(markers) == MAX_PARTS:
            raise BrokenImage(f"it has more than {allowed} scans")


def _turn_upright(image: Image.Image) -> Image.Image:
    """Turn a decoded image as its EXIF data say, where they can be read."""
    blocks = image.info.get("exif", b""), image.info.get("Raw profile type exif", "")
    if max(map(len, blocks)) > _MAX_EXIF:
        return image
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged blocks make Pillow raise almost anything
        return image
    return image if turn is None else image.transpose(turn)


def _keep_8_bits(image: Image.Image, bits: int) -> Image.Image:
    """Return an image of 8-bit values, or refuse those whose range is unknown."""
    if image.mode == "F":
        values: Any = np.asarray(image)
        low, high = values.min(), values.max()
        if not 0 <= low <= high <= 255:
            raise BrokenImage(f"its values, {low:g} to {high:g}, are not in [0, 1] or [0, 255]")
        scaled = np.rint(values * 255) if high <= 1 else values
        return Image.fromarray(scaled.astype(np.uint8))
    if image.mode.startswith("I"):
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        if not 0 <= low <= high < 2**16:
            raise BrokenImage(f"its values, {low} to {high}, are not in [0, 65535]")
        _check_16_bits(high, bits)
        return Image.fromarray((values >> (4 if bits == 12 else 8)).astype(np.uint8))
    if bits == 16 and image.mode != "CMYK":  # Pillow has dropped the lower 8 bits already
        brightest = int(np.asarray(image.convert("RGB")).max())
        _check_16_bits(256 * brightest + 1, bits)
    return image


def _check_16_bits(highest: int, bits: int) -> None:
    if bits == 16 and 0 < highest < 2**14:
        what = "its 16-bit values leave the upper two bits unused, as cameras of 10 to 14 bits do"
        raise BrokenImage(f"{what}; scale them to 65535, or save 8 bits")
