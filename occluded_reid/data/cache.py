"""Training images as pixels of one size: decoded when asked for, or once for all into a cache.

Shapes: N images, H, W of the training size.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from occluded_reid.data.images import READ_ERRORS, read_rgb
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import make_folder, make_once, write_errors_named, write_json
from occluded_reid.utils.progress import progress

logger = logging.getLogger(__name__)

_PIXELS, _ABOUT = "pixels.bin", "about.json"
_AT_ONCE = 1024  # images that threads decode ahead of the one that writes


class Images(Protocol):
    """A list of images of one size."""

    def __getitem__(self, index: int) -> np.ndarray | str:
        """Return (3, H, W) uint8 RGB, or why the image cannot be read."""


class DecodedImages:
    """Decodes and resizes an image whenever it is asked for.

    Args:
        paths: of the images.
        resize: to the training size, from a PIL image to a PIL image.
    """

    def __init__(self, paths: Sequence[str], resize: Callable[[Image.Image], Image.Image]):
        self.paths = paths
        self._resize = resize

    def __getitem__(self, index: int) -> np.ndarray | str:
        """Return the pixels as :class:`Images` says."""
        try:
            image = self._resize(read_rgb(self.paths[index]))
        except READ_ERRORS as error:
            return f"{type(error).__name__}: {error}"
        return np.asarray(image).transpose(2, 0, 1)


class CachedImages:
    """Reads decoded images from a file that all workers and ranks of a machine share.

    Args:
        folder: holds the file, as :func:`cached` made it.
        shape: (N, 3, H, W).
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int, int]):
        self._arguments = (folder, shape)
        # as a plain array, whose rows cost less to take
        self._pixels = np.asarray(np.memmap(folder / _PIXELS, np.uint8, "r", shape=shape))
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        self._unreadable: dict[int, str] = dict(about["unreadable"])

    def __getitem__(self, index: int) -> np.ndarray | str:
        """Return the pixels as :class:`Images` says."""
        return self._unreadable.get(index) or self._pixels[index]

    def __reduce__(self) -> tuple[Any, ...]:
        return CachedImages, self._arguments  # else a worker that is not forked gets a copy


def cached(
    images: DecodedImages, size: tuple[int, int], folder: str, *, threads: int = 1
) -> CachedImages:
    """Return the images from the cache in ``folder``; where they are not there, decode them now.

    A list of images has one place for each size. It is made anew when an image has another size in
    bytes or another date than it had, Pillow another version, or the cache another checksum. One
    process makes it, others wait.

    Args:
        images: what is cached.
        size: (H, W) that they are resized to.
        folder: of all caches.
        threads: how many decode.

    Raises:
        UserError: a disk that is too small or cannot be written.
    """
    shape = (len(images.paths), 3, *size)
    place = hashlib.sha256("\n".join(map(os.path.abspath, images.paths)).encode()).hexdigest()
    home = Path(folder) / f"{size[0]}x{size[1]}_{place[:16]}"
    state = _state(images.paths)

    def fill(empty: Path) -> None:
        _require_space(home, int(np.prod(shape)))
        unreadable, checksum = _write_pixels(empty / _PIXELS, images, shape, threads)
        about = {"state": state, "checksum": checksum, "unreadable": unreadable}
        write_json(empty / _ABOUT, about)

    make_folder(folder)
    make_once(home, fill, lambda made: _fault_of(made, state))
    logger.info(f"Decoded training images are read from {home}")
    return CachedImages(home, shape)


def _state(paths: Sequence[str]) -> str:
    """Return a digest of what the pixels depend on, but for the size they are resized to."""
    digest = hashlib.sha256(version("pillow").encode())
    for path in paths:
        try:
            found = os.stat(path)
            digest.update(f"{found.st_size} {found.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(b"missing\n")
    return digest.hexdigest()


def _fault_of(folder: Path, state: str) -> str:
    """Return why the cache in ``folder`` cannot be used; ``""`` where it can."""
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        if about["state"] != state:
            return "the images, or Pillow, are not those that it was made with"
        if about["checksum"] != _checksum(folder / _PIXELS):
            return f"{_PIXELS} is damaged, its checksum is another"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it is damaged ({type(error).__name__}: {error})"
    return ""


def _checksum(file: Path) -> int:
    """Return the CRC-32 of a file."""
    found = 0
    with open(file, "rb") as stream:
        while block := stream.read(1 << 24):
            found = zlib.crc32(block, found)
    return found


def _require_space(home: Path, size: int) -> None:
    free = shutil.disk_usage(home.parent).free
    if free < size:
        raise UserError(
            f"the decoded training images need {size / 1e9:.1f} GB in {home.parent} "
            f"(INPUT.CACHE), where {free / 1e9:.1f} GB are free; free some space, choose another "
            'folder, or do without: INPUT.CACHE ""'
        )


def _write_pixels(
    file: Path, images: DecodedImages, shape: tuple[int, int, int, int], threads: int
) -> tuple[list[tuple[int, str]], int]:
    """Write all pixels in order.

    Returns:
        Index and reason of those that cannot be read; the CRC-32 of what was written.
    """
    unreadable, checksum = [], 0
    blank = np.zeros(shape[1:], np.uint8)
    with (
        write_errors_named(file),
        open(file, "wb") as stream,  # not mapped: a full disk would end the process
        ThreadPoolExecutor(threads) as pool,
    ):
        blocks = (range(at, min(at + _AT_ONCE, shape[0])) for at in range(0, shape[0], _AT_ONCE))
        decoded = (each for block in blocks for each in pool.map(images.__getitem__, block))
        shown = progress(
            decoded, total=shape[0], description="decoding the training images", unit="images"
        )
        for index, pixels in enumerate(shown):
            if isinstance(pixels, str):
                unreadable.append((index, pixels))
                pixels = blank
            content = np.ascontiguousarray(pixels).data
            stream.write(content)
            checksum = zlib.crc32(content, checksum)
        stream.flush()
        os.fsync(stream.fileno())
    return unreadable, checksum
