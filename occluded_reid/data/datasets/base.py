"""Data sets whose file names hold identity and camera.

One parser reads all of them. A family of sets is a subclass of :class:`FolderDataset` that declares
its folders, file names and published counts. A set needs a few more class attributes.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from fastreid.data.datasets.bases import ImageDataset

from occluded_reid.data.datasets.layout import (
    list_candidates,
    list_folders,
    list_names,
    resolve_case,
)
from occluded_reid.data.images import is_image_name, warn_of_files
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.terminal import show

logger = logging.getLogger(__name__)

NOBODY = frozenset({"-1", "0000"})  # as names and tables write the identity of no person
OWN_DATA = "If the images are your own, list them in a table instead: CSV:FOLDER, docs/own_data.md"
NOTHING_SCORED = (
    "no query has an image of its identity from another camera in the gallery, so nothing can be "
    "scored; if there is only one camera, leave the cameras out (docs/own_data.md)"
)


class DatasetNotFound(UserError):
    """The folders of a data set are not on the disk."""


class LabeledImage(NamedTuple):
    """A test item in fast-reid's form: raw identity, camera counted from 0."""

    path: str
    pid: int
    camid: int


class Subsets(NamedTuple):
    """The images of a data set, before training labels become strings."""

    train: list[LabeledImage]
    query: list[LabeledImage]
    gallery: list[LabeledImage]


class Counts(NamedTuple):
    """Size of one subset; distractors (identity 0) count as images only."""

    images: int
    identities: int

    def __str__(self) -> str:
        return f"{self.images} images of {self.identities} identities"


def parse_identity(text: str, path: object) -> int:
    """Read the number of a person, at most nine digits, in the file ``path`` or its name."""
    if len(text.lstrip("-0")) > 9:
        raise UserError(
            f"{show(path)}: the identity {text[:12]}... has more than nine digits; rename or "
            f"remove the image. {OWN_DATA}"
        )
    return int(text)


def read_images(
    folder: Path, pattern: re.Pattern[str], *, num_cameras: int, camid: int | None = None,
    nested: bool = False,
) -> list[LabeledImage]:  # fmt: skip
    """Parse identity and camera of each image directly in ``folder`` from its file name.

    ``pattern`` is matched at the start of the name; group 1 is the identity, group 2 the camera,
    counted from 1 to ``num_cameras``; ``camid`` replaces it. Other files, names that do not match,
    and negative identities (junk detections) are skipped. The images are sorted by name. With
    ``nested``, those in the folders directly below follow; folder names are never parsed.
    """
    images, others = [], []
    homes = [folder, *list_folders(folder)] if nested else [folder]
    for path in (home / name for home in homes for name in list_names(home)):
        match = pattern.match(path.name)
        if match is None:
            continue
        if not is_image_name(path.name):
            others.append(path.name)
            continue
        pid = parse_identity(match[1], path)
        if pid < 0:
            continue
        camera = int(match[2]) if camid is None else camid + 1
        if camid is None and not 1 <= camera <= num_cameras:
            raise UserError(
                f"{show(path)}: the name has camera {camera}, but the set has cameras 1 to "
                f"{num_cameras}; rename or remove the file. {OWN_DATA}"
            )
        images.append(LabeledImage(str(path), pid, camera - 1))
    warn_of_files(f"files in {folder} are passed over, by name they are no images", others)
    return images


class FolderDataset(ImageDataset):
    """Base of the data sets that are read from folders of named images.

    A subclass declares the attributes below. If its images are not in one folder per subset, it
    overrides :meth:`read_subsets`.
    """

    dataset_name: str = ""  # prefix of training labels; sets that share identities share it
    protocols: ClassVar[Sequence[str]] = ()  # the default first; empty if there is only one
    #: Folders below ``root`` that are tried in order; ``""`` is ``root`` itself.
    layouts: ClassVar[Sequence[str]] = ("",)
    #: Folder of each subset below the layout's folder.
    folders: ClassVar[Mapping[str, str]] = {
        "train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test",
    }  # fmt: skip
    pattern: ClassVar[re.Pattern[str]] = re.compile(r"(-?\d+)_c(\d+)")  # see read_images
    example: ClassVar[str] = "0001_c1_000001.jpg"  # a name that matches, for messages
    num_cameras: ClassVar[int] = 1
    expected: Mapping[str, Counts] = {}  # published counts; other subsets go unchecked
    options: ClassVar[Sequence[str]] = ()  # further arguments that build_dataset passes on
    #: What to do if the set is missing.
    advice: ClassVar[str] = "Download the data set and unpack it there"
    #: Identities that are no persons: excluded from training and queries, but kept in the gallery
    #: unless negative. The name is fast-reid's.
    _junk_pids: ClassVar[list[int]] = [-1]

    def __init__(
        self, root: str = "datasets", protocol: str = "", allow_partial: bool = False,
        training: bool = True, **kwargs: Any,
    ) -> None:  # fmt: skip
        self.root = os.path.abspath(os.path.expanduser(root))
        self.home = self.root  # the folder of the images, once it is known
        self.image_folders: list[Path] = []  # the folders in it whose file names are parsed
        self.identity_names: dict[int, str] = {}  # as a table writes them
        self.missing: list[str] = []  # images of a table that are not on the disk
        self.protocol = self.resolve_protocol(protocol)
        self.allow_partial = allow_partial
        self.training = training  # without, the folders of training images need not exist
        subsets = self.read_subsets()
        self._check_counts(subsets)
        train = label_training_items(subsets.train, self.dataset_name)
        super().__init__(train, subsets.query, subsets.gallery, **kwargs)

    @classmethod
    def resolve_protocol(cls, protocol: str) -> str:
        """Return ``protocol``, or the default one for ``""``."""
        if not protocol:
            return cls.protocols[0] if cls.protocols else ""
        if protocol in cls.protocols:
            return protocol
        choices = " and ".join(cls.protocols) or "only one"
        raise UserError(f"{cls.__name__} has no protocol {protocol!r}; it has {choices}")

    @property
    def truth(self) -> dict[str, Any] | None:
        """The known occlusion of each image by absolute path, or None."""
        return None

    def read_subsets(self) -> Subsets:
        """Find and read the images; by default one folder per subset."""
        used = self.list_used_folders()
        folders = self.find_folders([tuple(used.values())])
        images = dict(zip(used, map(self.read_folder, folders), strict=True))
        return Subsets(
            train=self.remove_junk(images.get("train", [])),
            query=self.remove_junk(images.get("query", [])),
            gallery=images.get("gallery", []),
        )

    def list_used_folders(self) -> dict[str, str]:
        """Return :attr:`folders`, without those of training images where nobody asks for them."""
        names = self.folders.items()
        return {key: name for key, name in names if self.training or not key.endswith("train")}

    def find_folders(
        self, choices: Sequence[Sequence[str]], files: Sequence[str] = ()
    ) -> list[Path]:
        """Return the first choice of folders that a candidate has, together with ``files``."""
        for home in self.list_candidates():
            if not all(resolve_case(home, name).is_file() for name in files):
                continue
            for names in choices:
                folders = [resolve_case(home, name) for name in names]
                if all(folder.is_dir() for folder in folders):
                    self.home, self.image_folders = str(home), folders
                    return folders
        separator = ", " if len(choices) == 1 else " and "
        wanted = " or ".join(separator.join(names) for names in choices)
        wanted += f" with {', '.join(files)}" if files else ""
        raise self.missing_error(f"folders {wanted}")

    def read_folder(self, folder: Path) -> list[LabeledImage]:
        """Parse the image names of one folder."""
        return read_images(folder, self.pattern, num_cameras=self.num_cameras)

    def remove_junk(self, images: Iterable[LabeledImage]) -> list[LabeledImage]:
        """Return the images whose identities are persons."""
        return [image for image in images if image.pid not in self._junk_pids]

    def list_candidates(self) -> list[Path]:
        """Return the folders in which the set may be."""
        return list(list_candidates(Path(self.root), self.layouts))

    def format_candidates(self) -> str:
        """Return :meth:`list_candidates` as lines of a message."""
        return "\n".join(f"  {folder}" for folder in self.list_candidates())

    def missing_error(self, what: str) -> DatasetNotFound:
        """Return the error for a set without ``what`` in any of the candidates."""
        name = ":".join(filter(None, (type(self).__name__, self.protocol)))
        return DatasetNotFound(
            f"{name}: found no {what} in any of\n{self.format_candidates()}\n"
            f"{self.advice}, or point FASTREID_DATASETS to the folder of your data sets"
        )

    def _check_counts(self, subsets: Subsets) -> None:
        faults = []
        for subset, expected in self.expected.items():
            if subset == "train" and not self.training:
                continue
            counts = count_images(getattr(subsets, subset), self._junk_pids)
            if counts != expected:
                faults.append(f"{subset} has {counts}, expected {expected}")
        if not faults:
            return
        message = f"{type(self).__name__} in {self.home}: {'; '.join(faults)}"
        if not self.allow_partial:
            raise UserError(
                f"{message}. Get the complete data set (tools/check_dataset.py shows what is "
                f"missing), or continue without it: DATASETS.ALLOW_PARTIAL True. {OWN_DATA}"
            )
        logger.warning(f"{message}. Results are not comparable with published ones")


def count_images(images: Iterable[Sequence[Any]], junk_pids: Iterable[int]) -> Counts:
    """Count images (path, identity, ...), and identities that are not junk."""
    pids = [image[1] for image in images]
    return Counts(len(pids), len(set(pids).difference(junk_pids)))


def find_unmatched(query: Iterable[Sequence[Any]], gallery: Iterable[Sequence[Any]]) -> list[str]:
    """Return the paths of the queries without a match, which is from another camera.

    Items are (path, identity, camera, ...).

    >>> find_unmatched([("a", 7, 0), ("b", 8, 0)], [("c", 7, 1), ("d", 8, 0)])
    ['b']
    """
    cameras: dict[Any, set[Any]] = {}
    for _, pid, camera, *_ in gallery:
        cameras.setdefault(pid, set()).add(camera)
    return [path for path, pid, camera, *_ in query if not cameras.get(pid, set()) - {camera}]


def find_shared_people(dataset: ImageDataset, labels: Iterable[str]) -> list[str]:
    """Return the names of a set's test identities that have one of the training ``labels``.

    Labels are those of :func:`label_training_items`, also of other sets with the same identities.
    """
    own = getattr(dataset, "dataset_name", "")
    parts = (label.rpartition("_") for label in labels)
    trained = {int(pid) for name, _, pid in parts if name == own and pid.isdecimal()}
    tested = {item[1] for item in [*dataset.query, *dataset.gallery]}
    names = getattr(dataset, "identity_names", {})
    both = sorted((trained & tested).difference(dataset._junk_pids))
    return [show(names.get(pid, pid)) for pid in both]


def label_training_items(images: Sequence[LabeledImage], name: str) -> list[tuple[str, str, str]]:
    """Label training images with strings, as fast-reid does, so that sets can be combined.

    fast-reid numbers identities by *sorted strings*. Zero padding makes that the order of the
    numbers (``m_0002`` before ``m_0010``).
    """
    width = max([4] + [len(str(image.pid)) for image in images])
    return [(path, f"{name}_{pid:0{width}d}", f"{name}_{camid:02d}") for path, pid, camid in images]
