"""Records of a gallery: its images and itself; filters and results.

Shapes: D feature dimensions, P parts.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from occluded_reid.data.datasets.base import NOBODY
from occluded_reid.data.image_names import read_name
from occluded_reid.modeling.similarity import METRICS
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.tables import clean_path, read_csv

T = TypeVar("T", bound="IndexInfo")
logger = logging.getLogger(__name__)

DATES_FROM = 1e8  # seconds since 1970; smaller times are frame numbers
COLUMNS = ("path", "camera", "time", "identity")


@dataclass(frozen=True)
class IndexInfo:
    """Describe a gallery."""

    metric: str  # of occluded_reid.modeling.similarity.METRICS
    dim: int  # of the vectors
    num_parts: int  # with a visibility
    fingerprint: str  # of model, metric and preprocessing
    weights: str = ""  # path of the model's weights
    gallery: str = ""  # folder of the images


@dataclass(frozen=True)
class Item:
    """Describe a gallery image; None is unknown."""

    path: str  # relative to the gallery's folder, with "/"; unique in the index
    camera: str | None = None  # its name, such as "3"
    time: float | None = None  # seconds since 1970, or what names or table count, such as frames
    identity: str | None = None  # name of the person


class Hit(NamedTuple):
    """An image of the index and, as a search result, how similar it is.

    The similarity goes by the model's metric, higher is more similar: the cosine, the inner
    product, ``shared`` or ``query``, or minus the squared Euclidean distance. It is NaN where
    nothing was searched.
    """

    id: int  # :func:`make_id` of its path
    item: Item
    gallery: str  # folder of the images
    features: np.ndarray  # (D,) float32 as added; with norm 1 for the cosine
    visibility: np.ndarray  # (P,) in [0, 1], 1 = visible
    similarity: float = math.nan

    @property
    def image(self) -> Path:
        """Path of the file."""
        return Path(self.gallery, self.item.path)


@dataclass(frozen=True)
class Filter:
    """Restrict a search to some cameras and a span of time.

    Bounds from ``DATES_FROM`` on are dates, smaller ones frame numbers; neither accepts the other.

    >>> Filter(cameras=("1", "3"), since=parse_time("2024-05-31"))
    Filter(cameras=('1', '3'), since=1717113600.0, until=None)
    """

    cameras: tuple[str, ...] = ()  # names; empty accepts all images, also those without a camera
    since: float | None = None  # earliest time, inclusive; excludes images without a time
    until: float | None = None  # latest time, likewise

    def __post_init__(self) -> None:
        names = (self.cameras,) if isinstance(self.cameras, str) else tuple(self.cameras)
        object.__setattr__(self, "cameras", names)


def parse_info(text: str, record: type[T]) -> T:
    """Read a description in JSON; ValueError, TypeError, AttributeError: it is not one."""
    info = record(**json.loads(text))
    for field in fields(info):
        value = getattr(info, field.name)
        if type(value).__name__ != field.type or (field.type != "str" and not value >= 0):
            raise ValueError(f"{field.name} is {value!r}")
    if info.metric not in METRICS or not info.dim:
        raise ValueError(f"metric {info.metric!r} in {info.dim} dimensions")
    return info


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Return a sort key by which c2 comes before c10.

    >>> sorted(["c10", "gate", "2", "c2"], key=natural_key)
    ['2', 'c2', 'c10', 'gate']
    """
    parts = re.findall(r"\d{1,18}|\D+", name)
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def check_path(path: str) -> str:
    """Return ``path`` if it stays below the gallery's folder, else raise a UserError."""
    parts = path.split("/")
    is_utf8 = path.encode("utf-8", "replace").decode() == path
    if not is_utf8 or "\0" in path or {"", ".", ".."}.intersection(parts):
        raise UserError(
            f"{path!r} is not a path below the gallery's folder: it must be relative, such as "
            "camera1/0002.jpg, without '..', and in UTF-8"
        )
    return path


def parse_name(path: str) -> Item:
    """Return what a name says of an image, see :func:`read_name`.

    >>> parse_name("0002_c1s1_000451_03.jpg")
    Item(path='0002_c1s1_000451_03.jpg', camera='1', time=451.0, identity='2')
    """
    return Item(path, *read_name(path))


def parse_time(text: str) -> float:
    """Read a number, or a date and time in ISO 8601; UTC unless it names a zone.

    >>> parse_time("1970-01-02T00:00:00Z")
    86400.0
    """
    number = math.nan
    try:
        number = float(text)
    except ValueError:
        with contextlib.suppress(ValueError):
            moment = datetime.fromisoformat(re.sub("Z$", "+00:00", text.strip()))
            number = moment.replace(tzinfo=moment.tzinfo or timezone.utc).timestamp()
    if not math.isfinite(number):
        raise UserError(f"{text!r} is not a time; expected a number, or 2024-05-31T16:20:00")
    return number


def format_time(time: float) -> str:
    """Return a date in UTC, or a frame number.

    >>> format_time(1717172400), format_time(451)
    ('2024-05-31 16:20:00', '451')
    """
    with contextlib.suppress(OverflowError, ValueError, OSError):  # beyond the calendar
        if time >= DATES_FROM:
            moment = datetime.fromtimestamp(time, timezone.utc)
            return moment.isoformat(" ", "seconds").removesuffix("+00:00")
    return f"{time:.15g}"


def read_table(path: str | os.PathLike[str], folder: str = "") -> dict[str, Item]:
    """Read items by path from a CSV file with the columns path, camera, time and identity.

    Paths are relative to the gallery's ``folder``, or absolute below it. Only ``path`` is required;
    other columns are named in the log, and cells may be missing.
    """
    table = read_csv(path, str(path), "expected a CSV file in UTF-8")
    table.require("path")
    if unused := [name for name in table.columns if name not in ("", *COLUMNS)]:
        logger.info(f"{path}: the columns {', '.join(unused)} are not used")
    items: dict[str, Item] = {}
    for row in table.rows:
        cells = {name: text for name, text in row.cells.items() if text}
        try:
            name = check_path(clean_path(row.cells["path"], folder))
            time = parse_time(cells["time"]) if "time" in cells else None
            identity = cells.get("identity")
            item = Item(name, cells.get("camera"), time, None if identity in NOBODY else identity)
            if items.setdefault(name, item) != item:
                raise UserError(f"{name} is there twice, with other values")
        except UserError as error:
            raise UserError(f"{path}, line {row.line}: {error}") from error
    return items
