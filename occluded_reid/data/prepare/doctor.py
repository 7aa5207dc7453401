"""The data-set doctor: what a data set has, what it should have, and what to do."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from fastreid.data.datasets.bases import ImageDataset
from tabulate import tabulate

from occluded_reid.data.datasets.base import (
    NOTHING_SCORED,
    Counts,
    count_images,
    find_shared_people,
    find_unmatched,
    is_image_name,
)
from occluded_reid.data.datasets.layout import list_folders, list_names
from occluded_reid.data.prepare.image_files import FileReport, inspect_files
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.terminal import show

SUBSETS = ("train", "query", "gallery")
_MAX_EXAMPLES = 3
_MAX_BROKEN = 10  # files that are named one by one


class Entry(NamedTuple):
    """An image as the data set lists it; training labels that end in numbers are numbers too."""

    path: str
    pid: int | str
    camid: int | str
    subset: str


class Diagnosis:
    """The result of a check, made by :func:`diagnose`; each fault and each note is a sentence."""

    def __init__(self, dataset: ImageDataset, decode: bool):
        self.tables: list[str] = []  # counts and verdict by subset, then by folder
        self.faults: list[str] = []  # make results wrong or stop training
        self.notes: list[str] = []  # harmless but worth knowing
        self._dataset = dataset
        self._entries = list(_list_entries(dataset))
        tested = {entry.path for entry in self._entries if entry.subset != "train"}
        others = {entry.path for entry in self._entries}.difference(tested)
        self._files = inspect_files(sorted(tested), decode=True)  # a copy may have other bytes
        self._files += inspect_files(sorted(others), decode=decode)
        self._check_subsets()
        self._check_folders()
        self._report_broken(self._files)
        formats = Counter(file.format for file in self._files if file.format)
        for name, count in formats.items():
            self.notes.append(f"{count} images are {name}; reading converts them")
        self._check_overlap()
        self._check_sizes()
        self._check_duplicates()
        self._check_pasted(decode)

    def __str__(self) -> str:
        lines = [f"FAULT: {text}" for text in self.faults]
        lines += [f"note: {text}" for text in self.notes]
        verdict = f"{len(self.faults)} faults" if self.faults else "The data set is sound"
        return "\n\n".join([*self.tables, "\n".join([*lines, f"{verdict}."])])

    def _report_broken(self, files: list[FileReport]) -> None:
        broken = [f"{show(file.path)} {file.fault}" for file in files if file.fault]
        self.faults += broken[:_MAX_BROKEN]
        if (more := len(broken) - _MAX_BROKEN) > 0:
            self.faults.append(f"{more} more images are broken, {len(broken)} in all")

    def _check_subsets(self) -> None:
        """Compare the counts with the published ones, or the table with the disk."""
        lost = getattr(self._dataset, "missing", [])
        self.faults += _report(lost, "images of the table are not on the disk")
        published: Mapping[str, Counts] = getattr(self._dataset, "expected", {})
        rows = []
        for subset in SUBSETS:
            members = [entry for entry in self._entries if entry.subset == subset]
            counts = count_images(members, self._dataset._junk_pids)
            expected = published.get(subset)
            verdict = "not checked" if expected is None else "ok" if counts == expected else "WRONG"
            if verdict == "WRONG":
                self.faults.append(f"{subset} has {counts}, expected {expected}")
            numbers = (
                each.camid if isinstance(each.camid, str) else each.camid + 1 for each in members
            )
            cameras = sorted(Counter(numbers).items(), key=lambda pair: str(pair[0]).rjust(12))
            per_camera = "  ".join(f"{camera}: {count}" for camera, count in cameras)
            rows.append([subset, counts, expected or "", verdict, per_camera])
        headers = ["subset", "found", "expected", "verdict", "images per camera"]
        self.tables.append(tabulate(rows, headers, "pipe"))

    def _check_folders(self) -> None:
        """Check what the folders hold besides the images that are read."""
        broken = Counter(_get_side(file.path) for file in self._files if file.fault)
        rows: dict[Path, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
        unread, others = [], []
        for folder, names in self._group_names().items():
            rest = [name for name in list_names(folder) if name not in names]
            rest_files = [name for name in rest if not os.path.isdir(folder / name)]
            images = [name for name in rest_files if is_image_name(name)]
            wrong = [name for name in images if not _is_junk(name, self._dataset._junk_pids)]
            unread += sorted(str(folder / name) for name in wrong)
            others += [str(folder / name) for name in rest_files if not is_image_name(name)]
            junk = len(images) - len(wrong)
            counts = (len(names), junk, len(wrong), len(rest_files) - len(images))
            side = _get_side(str(folder / "image"))
            if any(counts) or folder in getattr(self._dataset, "image_folders", []):
                rows[side] = [sum(pair) for pair in zip(rows[side], counts, strict=True)]
        home = os.path.commonpath([str(side) for side in rows]) if rows else ""
        table = []
        for side, row in sorted(rows.items()):
            verdict = "BROKEN" if broken[side] else "NOT READ" if row[2] and not row[0] else "ok"
            table.append([show(os.path.relpath(side, home)), *row, broken[side], verdict])
        headers = ["folder", "images read", "junk skipped", "other images", "other files", "broken"]
        self.tables.append(
            f"Below {show(home)}:\n" + tabulate(table, [*headers, "verdict"], "pipe")
        )
        ignored = {side for side, row in rows.items() if not row[0]}
        example = getattr(self._dataset, "example", "")
        self.faults += _report(
            [path for path in unread if _get_side(path) in ignored],
            f"images are not named like {example}, so none of them is read",
        )
        self.notes += _report(
            [path for path in unread if _get_side(path) not in ignored],
            "images are not read: their names or the lists exclude them",
        )
        self.notes += _report(others, "files are no images")

    def _group_names(self) -> dict[Path, set[str]]:
        """Return the names of the read images by folder, including folders without any."""
        names: dict[Path, set[str]] = {}
        for side in getattr(self._dataset, "image_folders", []):
            names.update({folder: set() for folder in (side, *list_folders(side))})
        for entry in self._entries:
            names.setdefault(Path(entry.path).parent, set()).add(os.path.basename(entry.path))
        return names

    def _check_overlap(self) -> None:
        labels = [str(label) for _, label, _ in self._dataset.train]
        if both := find_shared_people(self._dataset, labels):
            examples = ", ".join(both[:_MAX_EXAMPLES])
            named = getattr(self._dataset, "identity_names", {})
            advice = "split by person, not by image" if named else "unpack the set again"
            self.faults.append(
                f"{len(both)} identities are in training and test ({examples}); {advice}"
            )

    def _check_sizes(self) -> None:
        """Check that something can be learned, and something scored."""
        train, query, gallery = (
            [entry for entry in self._entries if entry.subset == subset] for subset in SUBSETS
        )
        if len({entry.pid for entry in train}) == 1:
            self.faults.append("train has one identity; training needs at least two")
        if not (query or gallery):
            if train:
                self.notes.append("there are no queries and no gallery: it can only be trained on")
            else:
                self.faults.append("there are no images")
            return
        if not (query and gallery):
            self.faults.append(
                f"there are {len(query)} queries and {len(gallery)} gallery images, so nothing can "
                "be scored"
            )
            return
        unmatched = find_unmatched(query, gallery)
        if len(unmatched) == len(query):
            self.faults.append(NOTHING_SCORED)
            return
        what = "queries have no match in another camera and are not scored"
        self.notes += _report(unmatched, what)

    def _check_duplicates(self) -> None:
        """Look for files of equal pixels, or of equal bytes if they were not decoded."""
        decoded = {file.digest: file.pixels for file in self._files if file.pixels is not None}
        digests = {f.path: decoded.get(f.digest, f.digest) for f in self._files if f.digest}
        groups: dict[object, list[Entry]] = defaultdict(list)
        for entry in self._entries:
            if entry.path in digests:
                groups[digests[entry.path]].append(entry)
        found: dict[str, list[str]] = defaultdict(list)
        for group in groups.values():
            name = " = ".join(sorted({os.path.basename(entry.path) for entry in group}))
            subsets, people, sights = (
                {entry.subset for entry in group},
                {entry.pid for entry in group},
                {entry.camid for entry in group if entry.subset != "train"},
            )
            if len(people) > 1:
                found["identities"].append(name)
            elif {"query", "gallery"} <= subsets:
                found["cameras" if len(sights) > 1 else "query"].append(name)
            elif len(group) > 1:
                found["repeated"].append(name)
        self.faults += _report(found["identities"], "images are there under several identities")
        self.faults += _report(
            found["cameras"],
            "queries are in the gallery too, under another camera; a query's own image is not "
            "scored. Remove one of the two",
        )
        self.notes += _report(
            found["repeated"], "images are there more than once under one identity"
        )
        self.notes += _report(
            found["query"],
            "queries are in the gallery too, under their own camera: these copies are not scored, "
            "and re-ranking and query expansion count them once",
        )

    def _check_pasted(self, decode: bool) -> None:
        """Check the pasted queries of ``Occluded<Base>``."""
        folder = getattr(self._dataset, "pasted", None)
        if folder is None:
            return
        if not folder.is_dir():
            self.notes.append(f"the queries are not pasted yet; the first use does it, in {folder}")
            return
        paths = [image.path for image in self._dataset.pasted_queries]
        self._report_broken(inspect_files(paths, decode=decode))
        try:
            unknown = [path for path in paths if path not in self._dataset.truth]
            self.faults += _report(unknown, "pasted queries are not in truth.jsonl")
        except UserError as error:
            self.faults.append(str(error))
        self.notes.append(f"{len(paths)} queries are pasted, in {folder}")


def diagnose(dataset: ImageDataset, *, decode: bool = False) -> Diagnosis:
    """Check a data set that was built with ``allow_partial`` and without ``paste``.

    For ``Occluded<Base>`` this checks the base and, if they exist, the pasted queries. ``decode``
    decodes the training images, too, which takes about three times as long.
    """
    return Diagnosis(dataset, decode)


def _list_entries(dataset: ImageDataset) -> Iterable[Entry]:
    for path, pid, camid in dataset.train:  # labels such as market1501_0002 and market1501_00
        yield Entry(path, _parse_label(pid), _parse_label(camid), "train")
    for subset in ("query", "gallery"):
        for path, pid, camid in getattr(dataset, subset):
            yield Entry(path, int(pid), int(camid), subset)


def _parse_label(label: object) -> int | str:
    """Return the number at the end of a training label; some of fast-reid's have none."""
    try:
        return int(str(label).split("_")[-1])
    except ValueError:
        return str(label)


def _is_junk(name: str, junk_pids: Iterable[int]) -> bool:
    identity = re.match(r"-?\d+", name)
    return identity is not None and (int(identity[0]) < 0 or int(identity[0]) in junk_pids)


def _get_side(path: str) -> Path:
    """Return the folder of an image, or the one above if each identity has its own folder."""
    folder = Path(path).parent
    return folder.parent if folder.name.isdecimal() else folder


def _report(paths: list[str], what: str) -> list[str]:
    """Return one sentence with a count and examples, or nothing if there are no paths."""
    examples = ", ".join(show(os.path.basename(path)) for path in paths[:_MAX_EXAMPLES])
    dots = " ..." * (len(paths) > _MAX_EXAMPLES)
    return [f"{len(paths)} {what} ({examples}{dots})"] if paths else []
