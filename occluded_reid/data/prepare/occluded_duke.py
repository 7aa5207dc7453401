"""Builds Occluded-Duke from DukeMTMC-reID and the public name lists.

An image of Occluded-Duke is in DukeMTMC-reID's folder of the same subset or in another one: many
queries come from ``bounding_box_test``.
"""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath

from occluded_reid.data.datasets.base import Counts
from occluded_reid.data.datasets.dukemtmc import OccludedDuke
from occluded_reid.data.datasets.layout import list_candidates, list_names, resolve_case
from occluded_reid.utils.errors import UserError, explain_read_errors
from occluded_reid.utils.files import atomic_folder, explain_write_errors
from occluded_reid.utils.progress import progress
from occluded_reid.utils.tables import check_inside, read_list

logger = logging.getLogger(__name__)

FOLDERS = OccludedDuke.folders
_SOURCES = ("bounding_box_test", "query", "bounding_box_train")  # after the subset's own folder

# raised by a damaged, encrypted or exotic archive
_ARCHIVE_ERRORS = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)

# reads the content of an image, by folder (lower case) and name in the source
Images = dict[str, dict[str, Callable[[], bytes]]]


def build_occluded_duke(
    source: Path, lists: Path, target: Path, *, allow_partial: bool = False
) -> Path:
    """Copy the listed images to ``target``, all of them or none.

    Args:
        source: the folder of DukeMTMC-reID, or its zip archive.
        lists: the folder of ``train.list``, ``query.list`` and ``gallery.list``, a name per line.
        target: a new folder.
        allow_partial: accept lists of other lengths than the published ones.
    """
    if target.is_dir() and target.resolve() == lists.resolve():
        raise UserError(
            f"the lists are in {target}, which this command creates; move them elsewhere"
        )
    listed = {subset: _read_names(lists, subset) for subset in FOLDERS}
    faults = []
    for subset, expected in OccludedDuke.expected.items():
        names = listed[subset]
        counts = Counts(len(names), len({name.split("_")[0] for name in names}))
        if counts != expected:
            faults.append(f"{subset} names {counts}, expected {expected}")
    if faults and not allow_partial:
        raise UserError(
            f"the lists in {lists} are not the published ones: {'; '.join(faults)}. Fetch them "
            "again, or accept them with --allow-partial"
        )
    with _open_source(source) as images:
        chosen = _choose_images(listed, images, source)
        with atomic_folder(target) as temporary:
            for folder in FOLDERS.values():
                (temporary / folder).mkdir()
            tracked = progress(chosen.items(), description="Copying", unit="images", logger=logger)
            for relative, read in tracked:
                content = read()
                with explain_write_errors(temporary / relative):
                    (temporary / relative).write_bytes(content)
    return target


def _read_names(lists: Path, subset: str) -> list[str]:
    paths = [resolve_case(lists, f"{subset}{suffix}") for suffix in (".list", ".txt")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise UserError(
            f"there is no list {paths[0]}; {lists} must hold train.list, query.list and "
            "gallery.list of Occluded-Duke (github.com/lightas/Occluded-DukeMTMC-Dataset)"
        )
    names = read_list(path)
    for number, name in enumerate(names, start=1):
        if not OccludedDuke.pattern.match(name) or not name.lower().endswith(".jpg") or "/" in name:
            raise UserError(
                f"{path}, line {number}: {name!r} is no image name such as 0019_c1_f0051230.jpg; "
                "fetch the list again"
            )
    if len(set(names)) < len(names):
        raise UserError(f"{path} repeats images; fetch the list again")
    return names


def _choose_images(
    listed: dict[str, list[str]], images: Images, source: Path
) -> dict[str, Callable[[], bytes]]:
    """Return the reader of each image of the new set, by its path there."""
    chosen, missing = {}, []
    for subset, names in listed.items():
        order = dict.fromkeys((FOLDERS[subset], *_SOURCES))
        for name in names:
            readers = (images[folder][name] for folder in order if name in images[folder])
            if read := next(readers, None):
                chosen[f"{FOLDERS[subset]}/{name}"] = read
            else:
                missing.append(name)
    if missing:
        raise UserError(
            f"{source} lacks {len(missing)} of the listed images, such as "
            f"{', '.join(missing[:3])}; it must be the complete DukeMTMC-reID"
        )
    return chosen


@contextmanager
def _open_source(source: Path) -> Iterator[Images]:
    if not source.exists():
        raise UserError(f"there is no folder or archive {source}")
    advice = "it must be DukeMTMC-reID, a folder or a complete zip"
    with explain_read_errors(source, advice, _ARCHIVE_ERRORS):
        if source.is_dir():
            yield _list_folder(source)
        else:
            with zipfile.ZipFile(source) as archive:
                yield _list_zip(archive, source)


def _list_folder(source: Path) -> Images:
    for home in list_candidates(source, ("", "DukeMTMC-reID")):
        folders = {name: resolve_case(home, name) for name in FOLDERS.values()}
        if all(folder.is_dir() for folder in folders.values()):
            return {
                name: {image: (folder / image).read_bytes for image in list_names(folder)}
                for name, folder in folders.items()
            }
    raise UserError(f"{source} holds no folders {', '.join(FOLDERS.values())} of DukeMTMC-reID")


def _list_zip(archive: zipfile.ZipFile, source: Path) -> Images:
    """Return the members by their last folder and name; folders above are ignored."""
    images: Images = defaultdict(dict)
    for member in archive.infolist():
        path = PurePosixPath(check_inside(member.filename, source))
        if not member.is_dir() and "__MACOSX" not in path.parts:
            images[path.parent.name.lower()][path.name] = partial(archive.read, member)
    return images
