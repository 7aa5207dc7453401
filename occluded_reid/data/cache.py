"""Training images as (3, H, W) uint8 RGB of one size: decoded on demand, or once into a cache."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from occluded_reid.data.images import BrokenImage, read_rgb
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import explain_write_errors, make_folder_once, read_json, write_json
from occluded_reid.utils.progress import progress

logger = logging.getLogger(__name__)

_PIXELS, _INFO = "pixels.bin", "about.json"
_BLOCK = 1024  # images that threads decode ahead of the writer


class DecodedImages:
    """Decodes an image on every access and resizes it to the training size."""

    def __init__(self, paths: Sequence[str], resize: Callable[[Image.Image], Image.Image]):
        self.paths = paths
        self._resize = resize

    def __getitem__(self, position: int) -> np.ndarray | str:
        """Return (3, H, W) uint8 RGB, or why the image cannot be read."""
        try:
            image = self._resize(read_rgb(self.paths[position]))
        except BrokenImage as error:
            return error.reason
        return np.asarray(image).transpose(2, 0, 1)


class CachedImages:
    """Reads decoded images from a file that all workers and ranks of a machine share."""

    def __init__(self, folder: Path, shape: tuple[int, int, int, int]):
        self._arguments = (folder, shape)
        # indexing a plain array is cheaper than indexing a memmap
        self._pixels = np.asarray(np.memmap(folder / _PIXELS, np.uint8, "r", shape=shape))
        info = read_json(folder / _INFO)
        self._unreadable: dict[int, str] = dict(info["unreadable"])

    def __getitem__(self, position: int) -> np.ndarray | str:
        """Return (3, H, W) uint8 RGB, or why the image cannot be read."""
        return self._unreadable.get(position) or self._pixels[position]

    def __reduce__(self) -> tuple[Any, ...]:
        return CachedImages, self._arguments  # a spawned worker maps the file, not a copy of it


Images = DecodedImages | CachedImages
"""A list of images of one size."""


def open_cache(
    images: DecodedImages, size: tuple[int, int], folder: str, *, threads: int = 1
) -> CachedImages:
    """Open the cache of ``images`` in ``folder``; decode and write them if it is not there.

    Each list of images has one cache per ``size`` (H, W), below ``folder``. It is rebuilt when the
    size in bytes or the date of an image, the version of Pillow, or the checksum of the cache has
    changed. One process builds it, the others wait.
    """
    shape = (len(images.paths), 3, *size)
    name = hashlib.sha256("\n".join(map(os.path.abspath, images.paths)).encode()).hexdigest()
    home = Path(folder) / f"{size[0]}x{size[1]}_{name[:16]}"
    state = _digest_files(images.paths)

    def fill(empty: Path) -> None:
        needed, free = math.prod(shape), shutil.disk_usage(home.parent).free
        if free < needed:
            raise UserError(
                f"the decoded training images need {needed / 1e9:.1f} GB in {home.parent} "
                f"(INPUT.CACHE), but {free / 1e9:.1f} GB are free; free some space, choose another "
                'folder, or turn the cache off: INPUT.CACHE ""'
            )
        unreadable, checksum = _write_pixels(empty / _PIXELS, images, shape, threads)
        write_json(empty / _INFO, {"state": state, "checksum": checksum, "unreadable": unreadable})

    make_folder_once(home, fill, lambda made: _find_fault(made, state))
    logger.info(f"Decoded training images are read from {home}")
    return CachedImages(home, shape)


def _digest_files(paths: Sequence[str]) -> str:
    """Return a digest of everything the pixels depend on but the training size."""
    digest = hashlib.sha256(version("pillow").encode())
    for path in paths:
        try:
            status = os.stat(path)
            digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(b"missing\n")
    return digest.hexdigest()


def _find_fault(folder: Path, state: str) -> str:
    """Return why the cache in ``folder`` cannot be used, ``""`` if it can."""
    try:
        info = read_json(folder / _INFO)
        if info["state"] != state:
            return "the images or the version of Pillow have changed"
        if info["checksum"] != _compute_checksum(folder / _PIXELS):
            return f"{_PIXELS} is damaged: its checksum is wrong"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it is damaged ({type(error).__name__}: {error})"
    return ""


def _compute_checksum(file: Path) -> int:
    checksum = 0
    with open(file, "rb") as stream:
        while block := stream.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _write_pixels(
    file: Path, images: DecodedImages, shape: tuple[int, int, int, int], threads: int
) -> tuple[list[tuple[int, str]], int]:
    """Write all pixels in order; return (position, reason) of unreadable images, and the CRC-32."""
    unreadable, checksum = [], 0
    with (
        explain_write_errors(file),
        open(file, "wb") as stream,  # not a memmap: a full disk would kill the process
        ThreadPoolExecutor(threads) as pool,
    ):
        starts = range(0, shape[0], _BLOCK)
        blocks = (range(start, min(start + _BLOCK, shape[0])) for start in starts)
        decoded = (each for block in blocks for each in pool.map(images.__getitem__, block))
        tracked = progress(
            decoded, total=shape[0], description="Decoding the training images", unit="images"
        )
        for position, pixels in enumerate(tracked):
            if isinstance(pixels, str):
                unreadable.append((position, pixels))
                pixels = np.zeros(shape[1:], np.uint8)
            content = np.ascontiguousarray(pixels).data
            stream.write(content)
            checksum = zlib.crc32(content, checksum)
        stream.flush()
        os.fsync(stream.fileno())
    return unreadable, checksum
