"""Gallery images as a search sees them: metadata, filters, results.

Shapes: D feature dimensions, P parts.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from occluded_reid.data.datasets.base import FolderDataset
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.tables import Row, read_csv

COLUMNS = ("path", "camera", "time", "identity")

# 0002_c1s1_000451_03.jpg (Market-1501) and 0001_c2_f0046182.jpg (DukeMTMC-reID) name the frame, too
_NAME = re.compile(FolderDataset.pattern.pattern + r"(?:s\d+)?(?:_f?(\d+))?")


@dataclass(frozen=True)
class Item:
    """Describe a gallery image.

    Attributes:
        path: Relative to the gallery's folder, with ``/``; unique in the index.
        camera: Name such as ``"3"``; None if unknown.
        time: Seconds since 1970, or whatever the names or the table count, such as frames.
        identity: Name of the person; None if unknown.
    """

    path: str
    camera: str | None = None
    time: float | None = None
    identity: str | None = None


@dataclass(frozen=True)
class Hit:
    """A search result.

    Attributes:
        id: Number in the index; never reused.
        similarity: By the model's metric, higher is more similar: the cosine, the inner product, or
            minus the squared Euclidean distance.
        item: Its metadata.
        image: Path of the image file.
        visibility: (P,) in [0, 1], 1 = visible.
    """

    id: int
    similarity: float
    item: Item
    image: Path
    visibility: np.ndarray


@dataclass(frozen=True)
class IndexedImage:
    """An image as the index holds it.

    Attributes:
        id: Number in the index; never reused.
        item: Its metadata.
        image: Path of the image file.
        features: (D,) float32 as added; with norm 1 for the cosine.
        visibility: (P,) in [0, 1], 1 = visible.
    """

    id: int
    item: Item
    image: Path
    features: np.ndarray
    visibility: np.ndarray


@dataclass(frozen=True)
class Filter:
    """Restrict a search to some cameras and a span of time.

    Attributes:
        cameras: Names; empty accepts all images, also those without a camera.
        since: Earliest time, inclusive; excludes images without a time.
        until: Latest time, inclusive; excludes images without a time.

    >>> Filter(cameras=("1", "3"), since=parse_time("2024-05-31"))
    Filter(cameras=('1', '3'), since=1717113600.0, until=None)
    """

    cameras: tuple[str, ...] = ()
    since: float | None = None
    until: float | None = None


def check_path(path: str) -> str:
    """Return ``path`` if it stays below the gallery's folder.

    Raises:
        UserError: An absolute path, one with ``..``, or one that no file can have.
    """
    parts = path.split("/")
    is_utf8 = path.encode("utf-8", "replace").decode() == path
    if not is_utf8 or "\0" in path or {"", ".", ".."}.intersection(parts):
        raise UserError(
            f"{path!r} is not a path below the gallery's folder: it must be relative, such as "
            "camera1/0002.jpg, without '..', and in UTF-8"
        )
    return path


def parse_name(path: str) -> Item:
    """Read identity, camera and frame from a name as in Market-1501 or DukeMTMC-reID.

    Cameras count from 1, as in the name; the time is the frame number. Other names give the path
    alone.

    >>> parse_name("0002_c1s1_000451_03.jpg")
    Item(path='0002_c1s1_000451_03.jpg', camera='1', time=451.0, identity='2')
    """
    match = _NAME.match(os.path.basename(path))
    if match is None:
        return Item(path)
    time = float(match[3]) if match[3] else None
    return Item(path, camera=str(int(match[2])), time=time, identity=str(int(match[1])))


def parse_time(text: str) -> float:
    """Read a number, or a date and time in ISO 8601; UTC unless it names a zone.

    Raises:
        UserError: It is neither.

    >>> parse_time("1970-01-02T00:00:00Z")
    86400.0
    """
    try:
        number = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(re.sub("Z$", "+00:00", text.strip()))
        except ValueError:
            number = math.nan
        else:
            zone = moment.tzinfo or timezone.utc
            number = moment.replace(tzinfo=zone).timestamp()
    if not math.isfinite(number):
        raise UserError(f"{text!r} is not a time; expected a number, or 2024-05-31T16:20:00")
    return number


def read_table(path: str | os.PathLike[str]) -> dict[str, Item]:
    """Read items from a CSV file with the columns path, camera, time and identity.

    Only ``path`` is required; other columns and cells may be missing.

    Returns:
        The items by path.

    Raises:
        UserError: No such file, unknown columns, or an invalid line, which the message names.
    """
    table = read_csv(path, str(path), "expected a CSV file in UTF-8")
    names = table.columns
    if "path" not in names or not set(names) <= set(COLUMNS):
        raise UserError(
            f"{path}: the first line is {','.join(names) or 'empty'}; it should name the "
            f"columns {','.join(COLUMNS)}, at least path"
        )
    items: dict[str, Item] = {}
    for row in table.rows:
        item = _parse_row(row, f"{path}, line {row.line}")
        if item.path in items:
            raise UserError(f"{path}, line {row.line}: {item.path} is a duplicate")
        items[item.path] = item
    return items


def _parse_row(row: Row, line: str) -> Item:
    if row.surplus:
        raise UserError(f"{line}: more cells than columns")
    cells = row.cells
    try:
        item = Item(
            check_path(cells["path"]),
            cells.get("camera") or None,
            identity=cells.get("identity") or None,
        )
        time = cells.get("time")
        return replace(item, time=parse_time(time)) if time else item
    except UserError as error:
        raise UserError(f"{line}: {error}") from error
