"""Data sets whose identities and cameras stand in their file names.

One parser serves all of them. A family of sets is one subclass of :class:`FolderDataset` that
states its folders, its file names and its published counts; a set is a few class attributes more.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from fastreid.data.datasets.bases import ImageDataset

from occluded_reid.data.datasets.layout import as_spelled, candidate_homes, names_in
from occluded_reid.utils.errors import UserError

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp"})


class DatasetNotFound(UserError):
    """The folders of a data set are not on the disk."""


class LabelledImage(NamedTuple):
    """A test item as fast-reid wants it: raw identity, camera counted from 0."""

    path: str
    pid: int
    camid: int


class Subsets(NamedTuple):
    """What a data set consists of, before training labels become strings."""

    train: list[LabelledImage]
    query: list[LabelledImage]
    gallery: list[LabelledImage]


class Counts(NamedTuple):
    """Size of one subset; distractors (identity 0) are images but no identity."""

    images: int
    identities: int

    def __str__(self) -> str:
        return f"{self.images} images of {self.identities} identities"


def is_image_name(name: str) -> bool:
    """Whether ``name`` ends as the name of an image does."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def read_images(folder: Path, pattern: re.Pattern[str], *, num_cameras: int) -> list[LabelledImage]:
    """Read identity and camera of each image in ``folder`` from its file name.

    Files that are no images or do not begin as ``pattern`` says are left out, and so are images
    with a negative identity (junk detections).

    Args:
        folder: its own files only; nothing above or below its name is looked at.
        pattern: matched at the beginning of the name; group 1 is the identity, group 2 the
            camera, counted from 1.
        num_cameras: the number of cameras of the set.

    Returns:
        The images, sorted by file name.

    Raises:
        UserError: a file name gives a camera that the set does not have.
    """
    images = []
    for name in names_in(folder):
        match = pattern.match(name)
        if match is None or not is_image_name(name):
            continue
        pid, camera = int(match[1]), int(match[2])
        if pid < 0:
            continue
        if not 1 <= camera <= num_cameras:
            raise UserError(
                f"{folder / name}: its name says camera {camera}, but the set has the cameras 1 to "
                f"{num_cameras}; rename or remove the file"
            )
        images.append(LabelledImage(str(folder / name), pid, camera - 1))
    return images


class FolderDataset(ImageDataset):
    """Base of the data sets that are read from folders of named images.

    A subclass states the attributes below and, where its images do not stand in one folder per
    subset, overrides :meth:`read_subsets`.

    Args:
        root: the folder of all data sets.
        protocol: one of :attr:`protocols`; ``""`` is the first of them.
        allow_partial: warn instead of refusing where counts differ from :attr:`expected`.
    """

    #: First part of training labels; sets that share identities share it.
    dataset_name: str = ""
    #: Ways to evaluate the set; the first one is the default. Empty: there is just one.
    protocols: ClassVar[Sequence[str]] = ()
    #: Folders below ``root`` that are tried in order; ``""`` is ``root`` itself.
    layouts: ClassVar[Sequence[str]] = ("",)
    #: Folder of each subset below the layout's folder.
    folders: ClassVar[Mapping[str, str]] = {
        "train": "bounding_box_train",
        "query": "query",
        "gallery": "bounding_box_test",
    }
    pattern: ClassVar[re.Pattern[str]] = re.compile(r"(-?\d+)_c(\d+)")
    #: A file name as :attr:`pattern` reads it, for messages.
    example: ClassVar[str] = "0001_c1_000001.jpg"
    num_cameras: ClassVar[int] = 1
    #: Published counts of each subset; one that is not named is not checked.
    expected: ClassVar[Mapping[str, Counts]] = {}
    #: What to do when the set is not there.
    advice: ClassVar[str] = "Download the data set and unpack it there"

    #: Identities that are no persons: never trained on nor asked for, but kept in the gallery
    #: unless negative. The name is fast-reid's.
    _junk_pids: ClassVar[list[int]] = [-1]

    def __init__(
        self,
        root: str = "datasets",
        protocol: str = "",
        allow_partial: bool = False,
        **kwargs: Any,
    ) -> None:
        self.root = os.path.abspath(os.path.expanduser(root))
        self.home = self.root  # the folder that holds the images, once it is found
        self.image_folders: list[Path] = []  # in it, those whose file names are read
        self.protocol = self.choose_protocol(protocol)
        subsets = self.read_subsets()
        self._check_counts(subsets, allow_partial)
        super().__init__(
            training_items(subsets.train, self.dataset_name),
            subsets.query,
            subsets.gallery,
            **kwargs,
        )

    @classmethod
    def choose_protocol(cls, protocol: str) -> str:
        """Return ``protocol`` or, where it is ``""``, the default one."""
        if not protocol:
            return cls.protocols[0] if cls.protocols else ""
        if protocol in cls.protocols:
            return protocol
        choices = " and ".join(cls.protocols) or "just one way"
        raise UserError(f"{cls.__name__} has no protocol {protocol!r}; it has {choices}")

    @property
    def truth(self) -> dict[str, Any] | None:
        """What is known of each image beyond its labels, by absolute path; None if nothing is."""
        return None

    @property
    def own_copies(self) -> dict[str, str]:
        """Gallery path of each query that stands in the gallery too, by the query's path.

        Scoring drops such a copy (same identity, same camera); what looks at neighbours, such as
        re-ranking and query expansion, must leave it out as well.
        """
        return {}

    def read_subsets(self) -> Subsets:
        """Find and read the images; here one folder per subset."""
        home = self.find_home()
        found = {s: self.read(as_spelled(home, name)) for s, name in self.folders.items()}
        return Subsets(
            train=self.without_junk(found.get("train", [])),
            query=self.without_junk(found.get("query", [])),
            gallery=found.get("gallery", []),
        )

    def find_home(self) -> Path:
        """Return the first place in which all of :attr:`folders` stand."""
        wanted = list(self.folders.values())
        for home in self.candidates():
            folders = [as_spelled(home, name) for name in wanted]
            if all(folder.is_dir() for folder in folders):
                self.home, self.image_folders = str(home), folders
                return home
        raise self.not_found(self.candidates(), f"folders {', '.join(wanted)}")

    def read(self, folder: Path) -> list[LabelledImage]:
        """Read the images of one folder as this set names them."""
        return read_images(folder, self.pattern, num_cameras=self.num_cameras)

    def without_junk(self, images: Iterable[LabelledImage]) -> list[LabelledImage]:
        """Leave out the identities that are no persons."""
        return [image for image in images if image.pid not in self._junk_pids]

    def candidates(self) -> list[Path]:
        """The folders in which the set may stand."""
        return list(candidate_homes(Path(self.root), self.layouts))

    def not_found(self, tried: Iterable[Path], what: str) -> DatasetNotFound:
        """Return the error that says what was looked for, where, and what to do."""
        places = "\n".join(f"  {folder}" for folder in tried)
        return DatasetNotFound(
            f"{type(self).__name__}: found no {what} in any of\n{places}\n{self.advice}, or point "
            "FASTREID_DATASETS to the folder of your data sets"
        )

    def _check_counts(self, subsets: Subsets, allow_partial: bool) -> None:
        faults = []
        for subset, expected in self.expected.items():
            found = count(getattr(subsets, subset), self._junk_pids)
            if found != expected:
                faults.append(f"{subset} has {found}, expected {expected}")
        if not faults:
            return
        message = f"{type(self).__name__} in {self.home}: {'; '.join(faults)}"
        if not allow_partial:
            raise UserError(
                f"{message}. Fetch the complete data set (tools/check_dataset.py tells what is "
                "there), or go on with what is there by DATASETS.ALLOW_PARTIAL True"
            )
        logger.warning(f"{message}. Going on, but results are not comparable with published ones")


def count(images: Iterable[LabelledImage], junk_pids: Iterable[int] = ()) -> Counts:
    """Count images, and identities that are not junk."""
    pids = [image.pid for image in images]
    return Counts(len(pids), len(set(pids).difference(junk_pids)))


def training_items(images: Sequence[LabelledImage], name: str) -> list[tuple[str, str, str]]:
    """Label training images with strings, as fast-reid does, so that sets can be joined.

    fast-reid numbers the identities by *sorted strings*. The numbers in ours are padded with
    zeros, so that this order is the order of the numbers (``m_0002`` before ``m_0010``).
    """
    width = max([4] + [len(str(image.pid)) for image in images])
    return [(path, f"{name}_{pid:0{width}d}", f"{name}_{camid:02d}") for path, pid, camid in images]
