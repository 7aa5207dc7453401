"""Digests of a list of images and of an image: whether two runs, or two files, hold the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

from PIL import Image


def name_items(items: Iterable[Any]) -> list[tuple[tuple[str, ...], str, str]]:
    """Return folder and file, identity and camera of each image (path, identity, camera).

    The folders above are left out: the data may be moved, or lie elsewhere on another machine.
    """
    return [
        (PurePath(path).parts[-2:], str(identity), str(camera))
        for path, identity, camera, *_ in items
    ]


def digest_items(items: Iterable[Any]) -> str:
    """Return the sha256 of a training or test list, by :func:`name_items`, in order.

    The class of an identity is its rank among all of them, so the digest covers the labels too.

    >>> one = [("/data/shop/0001_c1.jpg", 1, 0)]
    >>> digest_items(one) == digest_items([("/disk/shop/0001_c1.jpg", 1, 0)])
    True
    >>> digest_items(one) == digest_items([("/data/shop/0001_c1.jpg", 2, 0)])
    False
    """
    return hashlib.sha256("".join(map(repr, name_items(items))).encode()).hexdigest()


def digest_pixels(image: Image.Image) -> int:
    """Return a hash of 63 bits that only images of equal size and pixels share.

    >>> digest_pixels(Image.new("RGB", (2, 8))) == digest_pixels(Image.new("RGB", (4, 4)))
    False
    """
    digest = hashlib.blake2b(image.tobytes(), digest_size=8, salt=b"%dx%d" % image.size).digest()
    return int.from_bytes(digest, "big") >> 1
