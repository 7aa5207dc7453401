"""What the name of a crop says, and the number that it has in every store and shard."""

from __future__ import annotations

import hashlib
import os
import re

from occluded_reid.data.datasets.base import FolderDataset

# 0002_c1s1_000451_03.jpg (Market-1501) and 0001_c2_f0046182.jpg (DukeMTMC-reID) name the frame, too
_NAME = re.compile(FolderDataset.pattern.pattern + r"(?:s\d+)?(?:_f?(\d+))?")


def read_name(path: str) -> tuple[str | None, float | None, str | None]:
    """Return camera, frame and identity of a name as in Market-1501 or DukeMTMC-reID.

    >>> read_name("0002_c1s1_000451_03.jpg"), read_name("person.jpg")
    (('1', 451.0, '2'), (None, None, None))
    """
    match = _NAME.match(os.path.basename(path))
    if match is None:
        return None, None, None
    identity = str(int(match[1])) if int(match[1]) > 0 else None  # else a false or no person
    return str(int(match[2])), float(match[3]) if match[3] else None, identity


def make_id(path: str) -> int:
    """Return the number of an image, from 0 to 2^63 - 1, which its path alone decides.

    >>> make_id("camera1/0002.jpg")
    739648903815508628
    """
    digest = hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
