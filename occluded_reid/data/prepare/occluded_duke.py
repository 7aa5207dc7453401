"""Building Occluded-Duke from DukeMTMC-reID and the public name lists.

The images may not be passed on, so its authors publish three lists of file names only:
``train.list``, ``query.list`` and ``gallery.list``, one name in a line. An image of Occluded-Duke
stands in DukeMTMC-reID's folder of the same subset, or in another one: many queries come from
``bounding_box_test``.
"""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from occluded_reid.data.datasets.base import Counts
from occluded_reid.data.datasets.dukemtmc import OccludedDuke
from occluded_reid.data.datasets.layout import as_spelled, candidate_homes, names_in
from occluded_reid.data.datasets.lists import inside, read_list
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import whole_folder, write_errors_named
from occluded_reid.utils.progress import progress

logger = logging.getLogger(__name__)

FOLDERS = OccludedDuke.folders
_NAME = OccludedDuke.pattern
_SOURCES = ("bounding_box_test", "query", "bounding_box_train")  # after the subset's own folder

# What a damaged, encrypted or exotic archive raises
_UNREADABLE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)

# The content of an image by the folder (in lower case) and the name that it has in the source.
Images = dict[str, dict[str, Callable[[], bytes]]]


def build_occluded_duke(
    source: Path, lists: Path, target: Path, *, allow_partial: bool = False
) -> Path:
    """Copy the listed images to ``target``, which is written whole or not at all.

    Args:
        source: the folder of DukeMTMC-reID, or its zip archive.
        lists: the folder of the three lists.
        target: the folder to make, such as ``datasets/Occluded_Duke``.
        allow_partial: take lists of other lengths than the published ones.

    Raises:
        UserError: lists that are not the published ones, images that are not in the source, an
            archive that is damaged or has members outside its folder, or a folder that is there.
    """
    if target.is_dir() and target.resolve() == lists.resolve():
        raise UserError(f"the lists stand in {target}, which is to be made; move them elsewhere")
    listed = {subset: _read_names(lists, subset) for subset in FOLDERS}
    _check_counts(listed, lists, allow_partial)
    with _opened(source) as images:
        chosen = _choose(listed, images, source)
        with whole_folder(target) as temporary:
            for folder in FOLDERS.values():
                (temporary / folder).mkdir()
            for relative, read in progress(
                chosen.items(), total=len(chosen), description="Copying", unit="images",
                logger=logger,
            ):  # fmt: skip
                content = read()
                with write_errors_named(temporary / relative):
                    (temporary / relative).write_bytes(content)
    return target


def _read_names(lists: Path, subset: str) -> list[str]:
    paths = [as_spelled(lists, f"{subset}{suffix}") for suffix in (".list", ".txt")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise UserError(
            f"there is no list {paths[0]}; {lists} must hold train.list, query.list and "
            "gallery.list of Occluded-Duke (github.com/lightas/Occluded-DukeMTMC-Dataset)"
        )
    names = read_list(path)
    for number, name in enumerate(names, start=1):
        if not _NAME.match(name) or not name.lower().endswith(".jpg") or "/" in name:
            raise UserError(
                f"{path}, line {number}: {name!r} is no image name such as 0019_c1_f0051230.jpg; "
                "fetch the list again"
            )
    if len(set(names)) < len(names):
        raise UserError(f"{path} names images twice; fetch the list again")
    return names


def _check_counts(listed: dict[str, list[str]], lists: Path, allow_partial: bool) -> None:
    faults = []
    for subset, expected in OccludedDuke.expected.items():
        names = listed[subset]
        found = Counts(len(names), len({name.split("_")[0] for name in names}))
        if found != expected:
            faults.append(f"{subset} names {found}, expected {expected}")
    if faults and not allow_partial:
        raise UserError(
            f"the lists in {lists} are not the published ones: {'; '.join(faults)}. Fetch them "
            "again, or go on with --allow-partial"
        )


def _choose(
    listed: dict[str, list[str]], images: Images, source: Path
) -> dict[str, Callable[[], bytes]]:
    """Return what to read for each image of the new set, by its path there."""
    chosen, missing = {}, []
    for subset, names in listed.items():
        order = dict.fromkeys((FOLDERS[subset], *_SOURCES))
        for name in names:
            found = (images[folder][name] for folder in order if name in images[folder])
            read = next(found, None)
            if read is None:
                missing.append(name)
            else:
                chosen[f"{FOLDERS[subset]}/{name}"] = read
    if missing:
        raise UserError(
            f"{source} lacks {len(missing)} of the listed images, such as "
            f"{', '.join(missing[:3])}; it must be the complete DukeMTMC-reID"
        )
    return chosen


@contextmanager
def _opened(source: Path) -> Iterator[Images]:
    if not source.exists():
        raise UserError(f"there is no folder or archive {source}")
    try:
        if source.is_dir():
            yield _images_of_folder(source)
        else:
            with zipfile.ZipFile(source) as archive:
                yield _images_of_zip(archive, source)
    except _UNREADABLE as error:
        raise UserError(
            f"cannot read {source} ({error}); it must be DukeMTMC-reID, a folder or a whole zip"
        ) from error


def _images_of_folder(source: Path) -> Images:
    layouts = ("", "DukeMTMC-reID")
    for home in candidate_homes(source, layouts):
        folders = {name: as_spelled(home, name) for name in FOLDERS.values()}
        if all(folder.is_dir() for folder in folders.values()):
            return {
                name: {image: (folder / image).read_bytes for image in names_in(folder)}
                for name, folder in folders.items()
            }
    raise UserError(f"{source} holds no folders {', '.join(FOLDERS.values())} of DukeMTMC-reID")


def _images_of_zip(archive: zipfile.ZipFile, source: Path) -> Images:
    """Members by their last folder and name; what the archive calls them above is not used."""
    images: Images = defaultdict(dict)
    for member in archive.infolist():
        path = PurePosixPath(inside(member.filename.replace("\\", "/"), source))
        if not member.is_dir() and "__MACOSX" not in path.parts:
            images[path.parent.name.lower()][path.name] = _member_reader(archive, member)
    return images


def _member_reader(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Callable[[], bytes]:
    return lambda: archive.read(member)
