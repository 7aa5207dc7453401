"""What is known of a gallery image beside its vector: path, camera, time and identity."""

from __future__ import annotations

import csv
import math
import os
import re
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from occluded_reid.data.datasets.base import FolderDataset
from occluded_reid.utils.errors import UserError

COLUMNS = ("path", "camera", "time", "identity")

# 0002_c1s1_000451_03.jpg (Market-1501) and 0001_c2_f0046182.jpg (DukeMTMC-reID): the frame follows
_NAME = re.compile(FolderDataset.pattern.pattern + r"(?:s\d+)?(?:_f?(\d+))?")


@dataclass(frozen=True)
class Item:
    """A gallery image.

    Attributes:
        path: below the gallery's folder, with ``/``; the image's name in the index.
        camera: the camera's name, such as ``"3"``; None if it is not known.
        time: seconds since 1970, or whatever the names or the table count, such as frames.
        identity: the person's name; None if it is not known.
    """

    path: str
    camera: str | None = None
    time: float | None = None
    identity: str | None = None


@dataclass(frozen=True)
class Filter:
    """Which items a search looks at: those of some cameras, and of a span of time.

    Attributes:
        cameras: names; empty: all of them, also images without a camera.
        since, until: the first and the last time, inclusive. Where one of them is given, images
            without a time are left out.
    """

    cameras: tuple[str, ...] = ()
    since: float | None = None
    until: float | None = None


def checked_path(path: str) -> str:
    """Return ``path`` if it leads to a place below the gallery's folder, and nowhere else.

    Raises:
        UserError: an absolute path, one with ``..``, or one that no file can have.
    """
    parts = path.split("/")
    readable = path.encode("utf-8", "replace").decode() == path
    if not readable or "\0" in path or {"", ".", ".."}.intersection(parts):
        raise UserError(
            f"{path!r} is no path below the gallery's folder: it must be relative, such as "
            "camera1/0002.jpg, without '..', and in UTF-8"
        )
    return path


def item_from_name(path: str) -> Item:
    """Read identity, camera and frame from a file name as Market-1501 and DukeMTMC-reID have it.

    Cameras are counted from 1, as in the name. The time is the number of the frame. Of any other
    name nothing but the path is known.
    """
    match = _NAME.match(os.path.basename(path))
    if match is None:
        return Item(path)
    time = float(match[3]) if match[3] else None
    return Item(path, camera=str(int(match[2])), time=time, identity=str(int(match[1])))


def parse_time(text: str) -> float:
    """Read a number, or a date (and time) as ISO 8601 has it; without a zone it is UTC.

    Raises:
        UserError: it is neither.
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
        raise UserError(f"{text!r} is no time: write a number, or 2024-05-31T16:20:00")
    return number


def read_table(path: str | os.PathLike[str]) -> dict[str, Item]:
    """Read a CSV file with the columns path, camera, time and identity.

    ``path`` is a must; the other columns and any cell of them may be missing. What is left out
    stays unknown.

    Returns:
        The items by their path below the gallery's folder.

    Raises:
        UserError: no such file, no column ``path``, a column of another name, or a line that
            cannot be read; the message names the line.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as stream:
            lines = csv.DictReader(stream)
            names = lines.fieldnames or []
            if "path" not in names or not set(names) <= set(COLUMNS):
                raise UserError(
                    f"{path}: its first line says {','.join(names) or 'nothing'}; it should name "
                    f"the columns {','.join(COLUMNS)}, at least path"
                )
            items: dict[str, Item] = {}
            for cells in lines:
                item = _item_from_cells(cells, f"{path}, line {lines.line_num}")
                if item.path in items:
                    raise UserError(f"{path}, line {lines.line_num}: {item.path} stands twice")
                items[item.path] = item
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}; expected a CSV file in UTF-8") from error
    return items


def _item_from_cells(cells: dict[str, str | None], place: str) -> Item:
    if None in cells:
        raise UserError(f"{place}: it has more cells than the first line")
    try:
        item = Item(
            checked_path(cells["path"] or ""),
            cells.get("camera") or None,
            identity=cells.get("identity") or None,
        )
        time = cells.get("time")
        return replace(item, time=parse_time(time)) if time else item
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
