"""The data-set doctor: what a data set has, what it should have, and what to do.

A *fault* makes results wrong or stops training; a *note* is harmless but worth knowing.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fastreid.data.datasets.bases import ImageDataset
from tabulate import tabulate

from occluded_reid.data.datasets.base import Counts, is_image_name
from occluded_reid.data.datasets.layout import list_folders, list_names
from occluded_reid.data.prepare.image_files import FileReport, inspect_files
from occluded_reid.utils.errors import UserError

SUBSETS = ("train", "query", "gallery")
_MAX_EXAMPLES = 3


class Entry(NamedTuple):
    """An image as the data set lists it; ``pid`` is a number in training too."""

    subset: str
    path: str
    pid: int
    camid: int


class Diagnosis(NamedTuple):
    """The result of a check.

    Attributes:
        tables: counts and verdict by subset, then by folder, as text.
        faults: one sentence each; empty for a sound set.
        notes: one sentence each.
    """

    tables: list[str]
    faults: list[str]
    notes: list[str]

    def __str__(self) -> str:
        lines = [f"FAULT: {text}" for text in self.faults]
        lines += [f"note: {text}" for text in self.notes]
        verdict = f"{len(self.faults)} faults" if self.faults else "The data set is sound"
        return "\n\n".join([*self.tables, "\n".join([*lines, f"{verdict}."])])


def diagnose(dataset: ImageDataset, *, decode: bool = False) -> Diagnosis:
    """Check a data set that was built with ``allow_partial`` and without ``paste``.

    For ``Occluded<Base>`` this checks the base and, if they exist, the pasted queries.

    Args:
        dataset: from :func:`~occluded_reid.data.datasets.registry.build_dataset`.
        decode: decode every image, which takes about three times as long.
    """
    entries = list(_list_entries(dataset))
    files = inspect_files(sorted({entry.path for entry in entries}), decode=decode)
    subset_table, faults = _check_subsets(dataset, entries)
    folder_table, unread, notes = _check_folders(dataset, entries, files)
    pasted_faults, pasted_notes = _check_pasted(dataset, decode)
    duplicate_faults, duplicate_notes = _check_duplicates(dataset, entries, files)
    faults += unread + [f"{file.path} {file.fault}" for file in files if file.fault]
    faults += pasted_faults + _check_overlap(dataset, entries) + duplicate_faults
    formats = Counter(file.format for file in files if file.format)
    notes += [f"{n} images are {name}; reading converts them" for name, n in formats.items()]
    notes += _check_matches(entries) + duplicate_notes + pasted_notes
    return Diagnosis([subset_table, folder_table], faults, notes)


def _list_entries(dataset: ImageDataset) -> Iterable[Entry]:
    for path, pid, camid in dataset.train:  # labels such as market1501_0002 and market1501_00
        yield Entry("train", path, int(str(pid).split("_")[-1]), int(str(camid).split("_")[-1]))
    for subset in ("query", "gallery"):
        for path, pid, camid in getattr(dataset, subset):
            yield Entry(subset, path, int(pid), int(camid))


def _check_subsets(dataset: ImageDataset, entries: list[Entry]) -> tuple[str, list[str]]:
    """Return a table and the faults of the counts."""
    published: Mapping[str, Counts] = getattr(dataset, "expected", {})
    junk = set(dataset._junk_pids)
    rows, faults = [], []
    for subset in SUBSETS:
        members = [entry for entry in entries if entry.subset == subset]
        counts = Counts(len(members), len({entry.pid for entry in members} - junk))
        expected = published.get(subset)
        verdict = "not checked" if expected is None else "ok" if counts == expected else "WRONG"
        if verdict == "WRONG":
            faults.append(f"{subset} has {counts}, expected {expected}")
        cameras = Counter(entry.camid + 1 for entry in members)
        per_camera = "  ".join(f"{camera}: {count}" for camera, count in sorted(cameras.items()))
        rows.append([subset, counts, expected or "", verdict, per_camera])
    headers = ["subset", "found", "expected", "verdict", "images per camera"]
    return tabulate(rows, headers, "pipe"), faults


def _check_folders(
    dataset: ImageDataset, entries: list[Entry], files: list[FileReport]
) -> tuple[str, list[str], list[str]]:
    """Return a table, faults and notes: what the folders hold besides the images that are read."""
    broken = Counter(_get_side(file.path) for file in files if file.fault)
    rows: dict[Path, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    unread, others = [], []
    for folder, names in _group_names(dataset, entries).items():
        rest = [name for name in list_names(folder) if name not in names]
        rest_files = [name for name in rest if not (folder / name).is_dir()]
        images = [str(folder / name) for name in rest_files if is_image_name(name)]
        junk = [path for path in images if _is_junk(os.path.basename(path), dataset._junk_pids)]
        unread += sorted(set(images) - set(junk))
        others += [str(folder / name) for name in rest_files if not is_image_name(name)]
        counts = (len(names), len(junk), len(images) - len(junk), len(rest_files) - len(images))
        side = _get_side(str(folder / "image"))
        if any(counts) or folder in getattr(dataset, "image_folders", []):
            rows[side] = [sum(pair) for pair in zip(rows[side], counts, strict=True)]
    home = os.path.commonpath([str(side) for side in rows]) if rows else ""
    table = [
        [os.path.relpath(side, home), *counts, broken[side], _judge_folder(counts, broken[side])]
        for side, counts in sorted(rows.items())
    ]
    headers = ["folder", "images read", "junk skipped", "other images", "other files", "broken"]
    ignored = {side for side, counts in rows.items() if not counts[0]}
    unreadable = [path for path in unread if _get_side(path) in ignored]
    example = getattr(dataset, "example", "")
    faults = _report(unreadable, f"images are not named like {example}, so none of them is read")
    notes = _report(
        [path for path in unread if _get_side(path) not in ignored],
        "images are not read: their names or the lists exclude them",
    )
    notes += _report(others, "files are no images")
    return f"Below {home}:\n" + tabulate(table, [*headers, "verdict"], "pipe"), faults, notes


def _judge_folder(counts: list[int], broken: int) -> str:
    read, _, unread, _ = counts
    return "BROKEN" if broken else "NOT READ" if unread and not read else "ok"


def _group_names(dataset: ImageDataset, entries: list[Entry]) -> dict[Path, set[str]]:
    """Return the names of the read images by folder, including folders without any."""
    names: dict[Path, set[str]] = {}
    for side in getattr(dataset, "image_folders", []):
        names.update({folder: set() for folder in (side, *list_folders(side))})
    for entry in entries:
        names.setdefault(Path(entry.path).parent, set()).add(os.path.basename(entry.path))
    return names


def _check_pasted(dataset: ImageDataset, decode: bool) -> tuple[list[str], list[str]]:
    """Return faults and notes of the pasted queries of ``Occluded<Base>``."""
    folder = getattr(dataset, "pasted", None)
    if folder is None:
        return [], []
    if not folder.is_dir():
        return [], [f"the queries are not pasted yet; the first use does it, in {folder}"]
    paths = [image.path for image in dataset.pasted_queries]
    files = inspect_files(paths, decode=decode)
    faults = [f"{file.path} {file.fault}" for file in files if file.fault]
    try:
        unknown = [path for path in paths if path not in dataset.truth]
        faults += _report(unknown, "pasted queries are not in truth.jsonl")
    except UserError as error:
        faults.append(str(error))
    return faults, [f"{len(paths)} queries are pasted, in {folder}"]


def _is_junk(name: str, junk_pids: Iterable[int]) -> bool:
    identity = re.match(r"-?\d+", name)
    return identity is not None and (int(identity[0]) < 0 or int(identity[0]) in junk_pids)


def _get_side(path: str) -> Path:
    """Return the folder of an image, or the one above if each identity has its own folder."""
    folder = Path(path).parent
    return folder.parent if folder.name.isdecimal() else folder


def _report(paths: list[str], what: str) -> list[str]:
    """Return one sentence with a count and examples, or nothing if there are no paths."""
    examples = ", ".join(os.path.basename(path) for path in paths[:_MAX_EXAMPLES])
    dots = " ..." * (len(paths) > _MAX_EXAMPLES)
    return [f"{len(paths)} {what} ({examples}{dots})"] if paths else []


def _check_overlap(dataset: ImageDataset, entries: list[Entry]) -> list[str]:
    """Return a fault if training identities are tested on."""
    junk = set(dataset._junk_pids)
    training = {entry.pid for entry in entries if entry.subset == "train"}
    tested = {entry.pid for entry in entries if entry.subset != "train"} - junk
    both = sorted(training & tested)
    if not both:
        return []
    examples = ", ".join(map(str, both[:_MAX_EXAMPLES]))
    return [f"{len(both)} identities are in training and test ({examples}); unpack the set again"]


def _check_matches(entries: list[Entry]) -> list[str]:
    """Return a note if queries cannot be scored."""
    cameras: dict[int, set[int]] = defaultdict(set)
    for entry in entries:
        if entry.subset == "gallery":
            cameras[entry.pid].add(entry.camid)
    queries = (entry for entry in entries if entry.subset == "query")
    unmatched = [entry.path for entry in queries if not cameras[entry.pid] - {entry.camid}]
    return _report(unmatched, "queries have no match in another camera and are not scored")


def _check_duplicates(
    dataset: ImageDataset, entries: list[Entry], files: list[FileReport]
) -> tuple[list[str], list[str]]:
    """Return faults and notes of files with equal content."""
    digests = {file.path: file.digest for file in files if file.digest}
    groups: dict[Any, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.path in digests:
            groups[digests[entry.path]].append(entry)
    known = getattr(dataset, "query_duplicates", {})
    faults, repeated = [], []
    in_gallery = 0
    for group in groups.values():
        paths = sorted({entry.path for entry in group})
        if len(paths) < 2:
            continue
        if len({entry.pid for entry in group}) > 1:
            faults.append("one image, several identities: " + ", ".join(paths))
            continue
        queries = [entry for entry in group if entry.subset == "query"]
        gallery = [entry for entry in group if entry.subset == "gallery"]
        in_gallery += sum(entry.path in known for entry in queries)
        if {entry.camid for entry in gallery} - {entry.camid for entry in queries} and queries:
            faults.append(
                "a query's own image is in the gallery under another camera, where it is scored: "
                + ", ".join(paths)
            )
        elif len(paths) > 1 + (len(queries) == len(gallery) == 1):
            repeated.append(paths[0])
    notes = _report(repeated, "images are there more than once under one identity")
    if in_gallery:
        notes.append(
            f"{in_gallery} queries are in the gallery too, under their own camera: scoring drops "
            "them, re-ranking and query expansion must"
        )
    return faults, notes
