"""Data of one's own: a folder of crops, and a table that says who and where each of them is."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NamedTuple

from fastreid.data.datasets import DATASET_REGISTRY

from occluded_reid.data.datasets.base import FolderDataset, LabelledImage, Subsets, logger
from occluded_reid.data.datasets.layout import as_spelled
from occluded_reid.data.datasets.lists import inside
from occluded_reid.utils.errors import UserError

TABLE = "images.csv"
_COLUMNS = ("path", "identity", "split")
_DISTRACTOR = 0  # of the gallery: nobody who is asked for


class Row(NamedTuple):
    """A line of the table; the values are text, without blanks around them.

    Attributes:
        line: its number in the file, from 1.
        path: relative to the table's folder.
        identity: any text; empty for somebody in the gallery who is not asked for.
        camera: any text; empty in all rows of a table without cameras.
        split: a field of :class:`Subsets`.
    """

    line: int
    path: str
    identity: str
    camera: str
    split: str


@DATASET_REGISTRY.register()
class CSV(FolderDataset):
    """A folder with images and ``images.csv``: ``CSV:FOLDER`` below the folder of all data sets.

    Columns ``path``, ``identity``, ``camera`` and ``split`` (train, query or gallery), in any
    order; others are not read. Identities and cameras are any text. Images of the query's identity
    and camera are not scored. Without the column ``camera`` queries and gallery count as two
    cameras, so that every match is.

    Args:
        root: the folder of all data sets.
        protocol: FOLDER.
        allow_partial: warn of images that are not there instead of refusing.
    """

    example = "any name that images.csv has"
    advice = (
        "Put the images there with images.csv, a table with the columns path, identity, camera and "
        "split (docs/own_data.md)"
    )
    _junk_pids = [-1, _DISTRACTOR]

    def __init__(
        self, root: str = "datasets", protocol: str = "", allow_partial: bool = False, **kwargs: Any
    ) -> None:
        self._allow_partial = allow_partial
        self.layouts = (self.choose_protocol(protocol),)  # type: ignore[misc]
        self.dataset_name = protocol.replace("/", "_")
        super().__init__(root, protocol, allow_partial, **kwargs)

    @classmethod
    def choose_protocol(cls, protocol: str) -> str:
        """Return the name of the folder.

        Raises:
            UserError: there is none.
        """
        if not protocol:
            raise UserError(
                f"CSV needs the folder of your data, CSV:FOLDER: its {TABLE} says what is in it"
            )
        return inside(protocol, Path("CSV:FOLDER"))

    def read_subsets(self) -> Subsets:
        """Read the table; number identities (from 1) and cameras in the order of their names."""
        tables = [as_spelled(home, TABLE) for home in self.candidates()]
        table = next((path for path in tables if path.is_file()), None)
        if table is None:
            raise self.not_found(self.candidates(), TABLE)
        self.home = str(table.parent)
        rows = self._present(table, read_table(table))
        identities = _numbered({row.identity for row in rows if row.identity})
        cameras = _numbered({row.camera for row in rows})
        subsets = Subsets([], [], [])
        for row in rows:
            pid = identities.get(row.identity, _DISTRACTOR)
            camera = cameras[row.camera] - 1 if row.camera else int(row.split == "gallery")
            image = LabelledImage(str(table.parent / row.path), pid, camera)
            getattr(subsets, row.split).append(image)
        return subsets

    def _present(self, table: Path, rows: list[Row]) -> list[Row]:
        """Return the rows whose images are there."""
        missing = [row for row in rows if not (table.parent / row.path).is_file()]
        if not missing:
            return rows
        message = (
            f"{table} names {len(missing)} images that are not there, such as {missing[0].path} in "
            f"line {missing[0].line}"
        )
        if not self._allow_partial:
            raise UserError(
                f"{message}. Paths start from the table's folder. Go on without them by "
                "DATASETS.ALLOW_PARTIAL True"
            )
        logger.warning(f"{message}. Going on without them")
        lines = {row.line for row in missing}
        return [row for row in rows if row.line not in lines]


def read_table(path: Path) -> list[Row]:
    """Read and check a table of images.

    Raises:
        UserError: it cannot be read, lacks columns or rows, or a row makes no sense; the message
            names the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            lines = [(reader.line_num, line) for line in reader]
            columns = [str(name).strip() for name in reader.fieldnames or ()]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the table {path} ({error}): CSV in UTF-8") from error
    absent = [name for name in _COLUMNS if name not in columns]
    if absent or not lines:
        raise UserError(
            f"{path} has the columns {', '.join(columns) or '(none)'} and {len(lines)} rows; it "
            f"needs rows with {', '.join(_COLUMNS)}, and camera if there are several, between "
            "commas"
        )
    rows = []
    for number, line in lines:
        cells = {str(name).strip(): str(value or "").strip() for name, value in line.items()}
        values = (cells[name].replace("\\", "/") if name == "path" else cells.get(name, "")
                  for name in Row._fields[1:])  # fmt: skip
        rows.append(Row(number, *values))
    _check_rows(path, rows, "camera" in columns)
    return rows


def _check_rows(path: Path, rows: list[Row], has_cameras: bool) -> None:
    seen: set[tuple[str, str]] = set()
    for row in rows:
        inside(row.path, path)
        faults = {
            "has no path": not row.path,
            f"has the split {row.split!r}; it can be {', '.join(Subsets._fields)}": (
                row.split not in Subsets._fields
            ),
            "has no identity; only images of the gallery may": (
                not row.identity and row.split != "gallery"
            ),
            "has no camera; give all rows one, or drop the column": (
                has_cameras and not row.camera
            ),
            f"names {row.path} for {row.split} again": (row.path, row.split) in seen,
        }
        if fault := next((text for text, is_so in faults.items() if is_so), ""):
            raise UserError(f"{path}, line {row.line}: this row {fault}")
        seen.add((row.path, row.split))


def _numbered(names: set[str]) -> dict[str, int]:
    """Number names from 1: first those that are numbers, by their values, then words."""
    numbers = sorted((name for name in names if name.isdecimal()), key=int)
    words = sorted(names.difference(numbers))
    return {name: number for number, name in enumerate([*numbers, *words], start=1)}
