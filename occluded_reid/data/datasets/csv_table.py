"""The user's own data: a folder of crops and a table of identities, cameras and splits."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from fastreid.data.datasets import DATASET_REGISTRY

from occluded_reid.data.datasets.base import FolderDataset, LabeledImage, Subsets, logger
from occluded_reid.data.datasets.layout import resolve_case
from occluded_reid.data.datasets.lists import check_inside
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.tables import read_csv

TABLE = "images.csv"
_DISTRACTOR = 0  # identity of gallery images that match no query


class ImageRow(NamedTuple):
    """A row of the table; ``identity`` is empty for distractors, ``camera`` without that column."""

    line: int
    path: str
    identity: str
    camera: str
    split: str


@DATASET_REGISTRY.register()
class CSV(FolderDataset):
    """A folder with images and ``images.csv``: ``CSV:FOLDER`` below the folder of all data sets.

    The table has the columns ``path``, ``identity``, ``camera`` and ``split`` (train, query or
    gallery) in any order; other columns are ignored. Identities and cameras are any text. Gallery
    images of the query's identity and camera are not scored. Without the column ``camera``, queries
    and gallery count as two cameras, so that every match is scored.

    Args:
        root: the folder of all data sets.
        protocol: FOLDER.
        allow_partial: warn about missing images instead of failing.
    """

    example = "any name in images.csv"
    advice = (
        "Put the images there with images.csv, a table with the columns path, identity, camera and "
        "split (docs/own_data.md)"
    )
    _junk_pids = [-1, _DISTRACTOR]

    def __init__(
        self, root: str = "datasets", protocol: str = "", allow_partial: bool = False, **kwargs: Any
    ) -> None:
        self._allow_partial = allow_partial
        self.layouts = (self.resolve_protocol(protocol),)  # type: ignore[misc]
        self.dataset_name = protocol.replace("/", "_")
        super().__init__(root, protocol, allow_partial, **kwargs)

    @classmethod
    def resolve_protocol(cls, protocol: str) -> str:
        """Return the name of the folder.

        Raises:
            UserError: there is none.
        """
        if not protocol:
            raise UserError(
                f"CSV needs the folder of your data, CSV:FOLDER, with {TABLE} and the images"
            )
        return check_inside(protocol, Path("CSV:FOLDER"))

    def read_subsets(self) -> Subsets:
        """Read the table; number identities (from 1) and cameras in the order of their names."""
        tables = [resolve_case(home, TABLE) for home in self.list_candidates()]
        table = next((path for path in tables if path.is_file()), None)
        if table is None:
            raise self.missing_error(TABLE)
        self.home = str(table.parent)
        rows = self._select_present(table, read_image_rows(table))
        identities = _number_names(row.identity for row in rows if row.identity)
        cameras = _number_names(row.camera for row in rows)
        subsets = Subsets([], [], [])
        for row in rows:
            pid = identities.get(row.identity, _DISTRACTOR)
            camera = cameras[row.camera] - 1 if row.camera else int(row.split == "gallery")
            image = LabeledImage(str(table.parent / row.path), pid, camera)
            getattr(subsets, row.split).append(image)
        return subsets

    def _select_present(self, table: Path, rows: list[ImageRow]) -> list[ImageRow]:
        """Return the rows whose images exist."""
        missing = [row for row in rows if not (table.parent / row.path).is_file()]
        if not missing:
            return rows
        message = (
            f"{table} names {len(missing)} missing images, such as {missing[0].path} in line "
            f"{missing[0].line}"
        )
        if not self._allow_partial:
            raise UserError(
                f"{message}. Paths are relative to the table's folder. Continue without these "
                "images: DATASETS.ALLOW_PARTIAL True"
            )
        logger.warning(f"{message}. Continuing without them")
        lines = {row.line for row in missing}
        return [row for row in rows if row.line not in lines]


def read_image_rows(path: Path) -> list[ImageRow]:
    """Read and check a table of images.

    Raises:
        UserError: it cannot be read, lacks columns or rows, or a row is invalid; the message names
            the line.
    """
    table = read_csv(path, f"the table {path}", "expected CSV in UTF-8")
    table.require("path", "identity", "split")
    rows = []
    for line, cells, _ in table.rows:
        values = (cells.get(name, "") for name in ("identity", "camera", "split"))
        rows.append(ImageRow(line, cells["path"].replace("\\", "/"), *values))
    _check_rows(path, rows, "camera" in table.columns)
    return rows


def _check_rows(path: Path, rows: list[ImageRow], has_cameras: bool) -> None:
    seen: set[tuple[str, str]] = set()
    for row in rows:
        check_inside(row.path, path)
        faults = {
            "has no path": not row.path,
            f"has the split {row.split!r}; it can be {', '.join(Subsets._fields)}": (
                row.split not in Subsets._fields
            ),
            "has no identity; only gallery images may have none": (
                not row.identity and row.split != "gallery"
            ),
            "has no camera; give one to all rows, or remove the column": (
                has_cameras and not row.camera
            ),
            f"repeats {row.path} in {row.split}": (row.path, row.split) in seen,
        }
        if fault := next((text for text, is_true in faults.items() if is_true), ""):
            raise UserError(f"{path}, line {row.line}: this row {fault}")
        seen.add((row.path, row.split))


def _number_names(names: Iterable[str]) -> dict[str, int]:
    """Number names from 1: numbers by value, then words."""
    unique = set(names)
    numbers = sorted((name for name in unique if name.isdecimal()), key=int)
    words = sorted(unique.difference(numbers))
    return {name: number for number, name in enumerate([*numbers, *words], start=1)}
