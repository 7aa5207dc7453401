"""The user's own data: a folder of crops and a table of identities, cameras and splits."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from fastreid.data.datasets import DATASET_REGISTRY

from occluded_reid.data.datasets.base import (
    NOBODY,
    FolderDataset,
    LabeledImage,
    Subsets,
    logger,
)
from occluded_reid.data.datasets.layout import list_candidates, resolve_case
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.tables import check_inside, read_csv
from occluded_reid.utils.terminal import show

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
    gallery) in any order; other columns are ignored. Identities and cameras are any text; of
    nobody, the identity is empty, 0000 or -1. Gallery images of the query's identity and camera are
    not scored. Without the column ``camera``, queries and gallery count as two cameras, so that
    every match is scored. ``allow_partial`` warns about missing images instead of failing.
    """

    example = "any name in images.csv"
    advice = (
        "Put the images there with images.csv, a table with the columns path, identity, camera and "
        "split (docs/own_data.md)"
    )
    _junk_pids = [-1, _DISTRACTOR]

    @classmethod
    def resolve_protocol(cls, protocol: str) -> str:
        """Return the name of the folder."""
        if not protocol:
            raise UserError(
                f"CSV needs the folder of your data, CSV:FOLDER, with {TABLE} and the images"
            )
        advice = "give its path below the folder of all data sets"
        return check_inside(protocol, Path("CSV:FOLDER"), advice)

    def list_candidates(self) -> list[Path]:
        """Return the folders in which FOLDER may be."""
        return list(list_candidates(Path(self.root), [self.protocol]))

    def read_subsets(self) -> Subsets:
        """Read the table; number identities (from 1) and cameras in the order of their names."""
        tables = [resolve_case(home, TABLE) for home in self.list_candidates()]
        table = next((path for path in tables if path.is_file()), None)
        if table is None:
            raise self.missing_error(TABLE)
        self.home = str(table.parent)
        self.dataset_name = self.protocol.replace("/", "_")
        rows = self._select_present(table, read_image_rows(table))
        identities = _number_names(row.identity for row in rows if row.identity)
        self.identity_names = {number: name for name, number in identities.items()}
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
        missing = [row for row in rows if not os.path.isfile(table.parent / row.path)]
        if not missing:
            return rows
        self.missing = [row.path for row in missing]
        message = (
            f"{table} names {len(missing)} missing images, such as {show(missing[0].path)} in line "
            f"{missing[0].line}"
        )
        if not self.allow_partial:
            raise UserError(
                f"{message}. Paths are relative to the table's folder. Continue without these "
                "images: DATASETS.ALLOW_PARTIAL True"
            )
        logger.warning(f"{message}. Continuing without them")
        lines = {row.line for row in missing}
        return [row for row in rows if row.line not in lines]


def read_image_rows(path: Path) -> list[ImageRow]:
    """Read and check a table of images; messages name the line."""
    table = read_csv(path, f"the table {path}", "expected CSV in UTF-8")
    table.require("path", "identity", "split")
    rows: list[ImageRow] = []
    seen: set[tuple[str, str]] = set()
    for line, cells in table.rows:
        image = check_inside(cells["path"], path, "move the image into it")
        identity, camera, split = (cells.get(key, "") for key in ("identity", "camera", "split"))
        identity = "" if identity in NOBODY else identity
        fault = ""
        if not cells["path"]:
            fault = "has no path"
        elif split not in Subsets._fields:
            fault = f"has the split {split!r}; it can be {', '.join(Subsets._fields)}"
        elif not identity and split != "gallery":
            fault = "has no identity; only gallery images may have none"
        elif "camera" in table.columns and not camera:
            fault = "has no camera; give one to all rows, or remove the column"
        elif (image, split) in seen:
            fault = f"repeats {show(image)} in {split}"
        if fault:
            raise UserError(f"{path}, line {line}: this row {fault}")
        seen.add((image, split))
        rows.append(ImageRow(line, image, identity, camera, split))
    return rows


def _number_names(names: Iterable[str]) -> dict[str, int]:
    """Number names from 1: numbers by value, then words."""
    unique = set(names)
    digits = {name for name in unique if name.isascii() and name.isdecimal()}
    by_value = {name: name.lstrip("0") for name in digits}  # of any length
    numbers = sorted(digits, key=lambda name: (len(by_value[name]), by_value[name], name))
    words = sorted(unique - digits)
    return {name: number for number, name in enumerate([*numbers, *words], start=1)}
