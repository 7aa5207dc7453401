"""The data-set doctor: what was found, what was expected, what to do.

A *fault* makes results wrong or training stop; a *note* is worth knowing and does no harm.
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
from occluded_reid.data.datasets.layout import names_in, visible_folders
from occluded_reid.data.prepare.image_files import FileFacts, inspect_files
from occluded_reid.utils.errors import UserError

SUBSETS = ("train", "query", "gallery")
_EXAMPLES = 3


class Entry(NamedTuple):
    """An image as the data set lists it; ``pid`` is a number in training too."""

    subset: str
    path: str
    pid: int
    camid: int


class Diagnosis(NamedTuple):
    """What the doctor says of a data set.

    Attributes:
        tables: found, expected and verdict per subset, then per folder; for people.
        faults: one sentence each; empty if the set is sound.
        notes: likewise.
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
    """Check a data set that was read with ``allow_partial`` and without ``paste``.

    Of ``Occluded<Base>`` the base is checked and, where they are there, the pasted queries.

    Args:
        dataset: what :func:`~occluded_reid.data.datasets.registry.build_dataset` returned.
        decode: decode every image, which takes some three times as long.
    """
    entries = list(_entries(dataset))
    files = inspect_files(sorted({entry.path for entry in entries}), decode=decode)
    subset_table, faults = _judge_subsets(dataset, entries)
    folder_table, unread, notes = _judge_folders(dataset, entries, files)
    pasted_faults, pasted_notes = _judge_pasted(dataset, decode)
    faults += unread + [f"{each.path} {each.fault}" for each in files if each.fault]
    faults += pasted_faults
    faults += _overlaps(dataset, entries)
    same_faults, same_notes = _duplicates(dataset, entries, files)
    kinds = Counter(each.kind for each in files if each.kind)
    notes += [f"{n} images are {kind}; reading converts them" for kind, n in kinds.items()]
    notes += _queries_without_match(entries)
    notes += same_notes + pasted_notes
    return Diagnosis([subset_table, folder_table], faults + same_faults, notes)


def _entries(dataset: ImageDataset) -> Iterable[Entry]:
    for path, pid, camid in dataset.train:  # labels such as market1501_0002 and market1501_00
        yield Entry("train", path, int(str(pid).split("_")[-1]), int(str(camid).split("_")[-1]))
    for subset in ("query", "gallery"):
        for path, pid, camid in getattr(dataset, subset):
            yield Entry(subset, path, int(pid), int(camid))


def _judge_subsets(dataset: ImageDataset, entries: list[Entry]) -> tuple[str, list[str]]:
    expected: Mapping[str, Counts] = getattr(dataset, "expected", {})
    junk = set(dataset._junk_pids)
    rows, faults = [], []
    for subset in SUBSETS:
        found = [entry for entry in entries if entry.subset == subset]
        counts = Counts(len(found), len({entry.pid for entry in found} - junk))
        wanted = expected.get(subset)
        verdict = "not checked" if wanted is None else "ok" if counts == wanted else "WRONG"
        if verdict == "WRONG":
            faults.append(f"{subset} has {counts}, expected {wanted}")
        cameras = Counter(entry.camid + 1 for entry in found)
        per_camera = "  ".join(f"{camera}: {number}" for camera, number in sorted(cameras.items()))
        rows.append([subset, counts, wanted or "", verdict, per_camera])
    headers = ["subset", "found", "expected", "verdict", "images of each camera"]
    return tabulate(rows, headers, "pipe"), faults


def _judge_folders(
    dataset: ImageDataset, entries: list[Entry], files: list[FileFacts]
) -> tuple[str, list[str], list[str]]:
    """A table, faults and notes: what stands in the folders beside the images that were read."""
    broken = Counter(_side(each.path) for each in files if each.fault)
    rows: dict[Path, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    unread, others = [], []
    for folder, names in _read_names(dataset, entries).items():
        left = [name for name in names_in(folder) if name not in names]
        files_left = [name for name in left if not (folder / name).is_dir()]
        images = [str(folder / name) for name in files_left if is_image_name(name)]
        junk = [path for path in images if _is_junk(os.path.basename(path), dataset._junk_pids)]
        unread += sorted(set(images) - set(junk))
        others += [str(folder / name) for name in files_left if not is_image_name(name)]
        counts = (len(names), len(junk), len(images) - len(junk), len(files_left) - len(images))
        side = _side(str(folder / "image"))
        if any(counts) or folder in getattr(dataset, "image_folders", []):
            rows[side] = [sum(pair) for pair in zip(rows[side], counts, strict=True)]
    home = os.path.commonpath([str(side) for side in rows]) if rows else ""
    table = [
        [os.path.relpath(side, home), *counts, broken[side], _verdict(counts, broken[side])]
        for side, counts in sorted(rows.items())
    ]
    headers = ["folder", "images read", "junk left out", "other images", "other files", "broken"]
    nothing_read = {side for side, counts in rows.items() if not counts[0]}
    unreadable = [path for path in unread if _side(path) in nothing_read]
    example = getattr(dataset, "example", "")
    faults = _noted(unreadable, f"images are not named as {example} is, so none of them is read")
    notes = _noted(
        [path for path in unread if _side(path) not in nothing_read],
        "images are not read: their names or the lists leave them out",
    )
    notes += _noted(others, "files are no images")
    return f"Below {home}:\n" + tabulate(table, [*headers, "verdict"], "pipe"), faults, notes


def _verdict(counts: list[int], broken: int) -> str:
    read, _, unread, _ = counts
    return "BROKEN" if broken else "NOT READ" if unread and not read else "ok"


def _read_names(dataset: ImageDataset, entries: list[Entry]) -> dict[Path, set[str]]:
    """The file names that were read in each folder, also in those where there were none."""
    read: dict[Path, set[str]] = {}
    for side in getattr(dataset, "image_folders", []):
        read.update({folder: set() for folder in (side, *visible_folders(side))})
    for entry in entries:
        read.setdefault(Path(entry.path).parent, set()).add(os.path.basename(entry.path))
    return read


def _judge_pasted(dataset: ImageDataset, decode: bool) -> tuple[list[str], list[str]]:
    """Faults and notes of the pasted queries of ``Occluded<Base>``."""
    folder = getattr(dataset, "pasted", None)
    if folder is None:
        return [], []
    if not folder.is_dir():
        return [], [f"the queries are not pasted over yet; the first use does it, in {folder}"]
    paths = [image.path for image in dataset.pasted_queries]
    files = inspect_files(paths, decode=decode)
    faults = [f"{each.path} {each.fault}" for each in files if each.fault]
    try:
        unknown = [path for path in paths if path not in dataset.truth]
        faults += _noted(unknown, "pasted queries are not in truth.jsonl")
    except UserError as error:
        faults.append(str(error))
    return faults, [f"{len(paths)} queries are pasted over, in {folder}"]


def _is_junk(name: str, junk_pids: Iterable[int]) -> bool:
    identity = re.match(r"-?\d+", name)
    return identity is not None and (int(identity[0]) < 0 or int(identity[0]) in junk_pids)


def _side(path: str) -> Path:
    """The folder of an image, or the one above where each identity has a folder of its own."""
    folder = Path(path).parent
    return folder.parent if folder.name.isdecimal() else folder


def _noted(paths: list[str], what: str) -> list[str]:
    examples = ", ".join(os.path.basename(path) for path in paths[:_EXAMPLES])
    return [f"{len(paths)} {what} ({examples}{' ...' * (len(paths) > _EXAMPLES)})"] if paths else []


def _overlaps(dataset: ImageDataset, entries: list[Entry]) -> list[str]:
    """Identities of the training set that are tested on."""
    junk = set(dataset._junk_pids)
    training = {entry.pid for entry in entries if entry.subset == "train"}
    tested = {entry.pid for entry in entries if entry.subset != "train"} - junk
    both = sorted(training & tested)
    if not both:
        return []
    examples = ", ".join(map(str, both[:_EXAMPLES]))
    return [f"{len(both)} identities are in training and test ({examples}); unpack the set again"]


def _queries_without_match(entries: list[Entry]) -> list[str]:
    """Queries that cannot be scored: no image of their identity from another camera."""
    cameras: dict[int, set[int]] = defaultdict(set)
    for entry in entries:
        if entry.subset == "gallery":
            cameras[entry.pid].add(entry.camid)
    queries = (entry for entry in entries if entry.subset == "query")
    lonely = [entry.path for entry in queries if not cameras[entry.pid] - {entry.camid}]
    return _noted(lonely, "queries have no match from another camera and are not scored")


def _duplicates(
    dataset: ImageDataset, entries: list[Entry], files: list[FileFacts]
) -> tuple[list[str], list[str]]:
    """Exact copies: of other identities, in other subsets, of a query in the gallery, or twice."""
    digests = {each.path: each.digest for each in files if each.digest}
    groups: dict[Any, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.path in digests:
            groups[digests[entry.path]].append(entry)
    faults, twice = [], []
    known = getattr(dataset, "own_copies", {})
    copies = 0
    for same in groups.values():
        paths = sorted({entry.path for entry in same})
        if len(paths) < 2:
            continue
        if len({entry.pid for entry in same}) > 1:
            faults.append("one picture, several identities: " + ", ".join(paths))
            continue
        queries = [entry for entry in same if entry.subset == "query"]
        gallery = [entry for entry in same if entry.subset == "gallery"]
        copies += sum(entry.path in known for entry in queries)
        if {entry.camid for entry in gallery} - {entry.camid for entry in queries} and queries:
            faults.append(
                "a query's own picture stands in the gallery under another camera, where it is "
                "scored: " + ", ".join(paths)
            )
        elif len(paths) > 1 + (len(queries) == len(gallery) == 1):
            twice.append(paths[0])
    notes = _noted(twice, "pictures stand there more than once under one identity")
    if copies:
        notes.append(
            f"{copies} queries stand in the gallery too, under their own camera: scoring drops "
            "them, re-ranking and query expansion must"
        )
    return faults, notes
