"""Features of a long list of images: in parts that outlive an interruption, then as one file.

Part k holds the images k * S to (k + 1) * S - 1 of the list, whoever writes it; so another number
of processes can go on with what some have begun.

Shapes: N images that could be read, D feature dimensions, P parts of a person, S images in a part.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from occluded_reid.data.datasets.base import IMAGE_SUFFIXES
from occluded_reid.deploy.embedder import Embedded
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import make_folder, whole_file, write_errors_named

SUFFIXES = IMAGE_SUFFIXES | {".webp"}


class ImageList(NamedTuple):
    """What features are made of.

    Attributes:
        folder: that the paths start from.
        paths: unicode, as they stand in the list, or below the folder in their order.
    """

    folder: str
    paths: np.ndarray

    def sha256(self) -> str:
        """Return the digest of the folder and of the paths in their order."""
        digest = hashlib.sha256(_bytes(os.path.abspath(self.folder)))
        for path in self.paths:
            digest.update(b"\0" + _bytes(path))
        return digest.hexdigest()


class Job(NamedTuple):
    """What all parts of one file agree on.

    Attributes:
        images: digest of the list.
        model: its fingerprint.
        precision: number type of the model's arithmetic.
        part_size: S.
    """

    images: str
    model: str
    precision: str
    part_size: int


class Broken(NamedTuple):
    """An image that cannot be read: its place in the list, and why."""

    place: int
    reason: str


class FeatureFile:
    """An npz file that grows in the folder ``<path>.parts`` until all parts are there.

    Args:
        path: of the file.
        job: what it is made of.
        images: the list.
    """

    def __init__(self, path: str | os.PathLike[str], job: Job, images: ImageList):
        self.path = Path(path)
        self.folder = self.path.with_name(f"{self.path.name}.parts")
        self.num_parts = -(-len(images.paths) // job.part_size)
        self._job = job
        self._images = images

    def is_finished(self) -> bool:
        """Whether the file is there; it is before its parts are removed.

        Raises:
            UserError: it is there, but not of this job.
        """
        if not self.path.exists():
            return False
        self._check(self.path, "delete it")
        return True

    def missing(self) -> list[int]:
        """Return the numbers of the parts that nobody has written yet."""
        return [number for number in range(self.num_parts) if not self._part(number).exists()]

    def check_parts(self) -> None:
        """Refuse to go on with another job's parts.

        Raises:
            UserError: there is such a part, or a damaged one.
        """
        for part in sorted(self.folder.glob("part_*.npz")):
            self._check(part, f"delete the folder {self.folder}")

    def write_part(
        self, number: int, places: np.ndarray, embedded: Embedded, broken: Sequence[Broken]
    ) -> None:
        """Write a part whole.

        Args:
            number: k.
            places: (n,) places in the list of the images that could be read.
            embedded: of these n images.
            broken: the part's other images.
        """
        content = io.BytesIO()
        arrays: dict[str, Any] = {
            **embedded._asdict(),
            "places": places,
            "broken": np.array([image.place for image in broken], np.int64),
            "reasons": np.array([image.reason for image in broken], np.str_),
            "job": np.array(json.dumps(self._job._asdict())),
        }
        np.savez(content, **arrays)
        make_folder(self.folder)
        with whole_file(self._part(number)) as stream:
            stream.write(content.getbuffer())

    def assemble(self, metric: str, dim: int, num_parts: int) -> list[Broken]:
        """Make one file of all parts and remove them; one part at a time is held in memory.

        Args:
            metric: by which the features are compared.
            dim: D.
            num_parts: P.

        Returns:
            The images that could not be read.

        Raises:
            UserError: not one image could be read, or the disk is full.
        """
        paths = self._images.paths
        done = sum(len(places) for places in self._each("places"))
        reasons = [str(reason) for part in self._each("reasons") for reason in part]
        places = np.concatenate(list(self._each("broken")))
        broken = [Broken(int(each), why) for each, why in zip(places, reasons, strict=True)]
        if not done:
            shutil.rmtree(self.folder)
            raise UserError(
                f"none of the {len(paths)} images can be read; the first is "
                f"{os.path.join(self._images.folder, paths[0])} ({broken[0].reason})"
            )
        whole = self.folder / "whole.npz"  # what a kill leaves of it goes with the folder
        with whole_file(whole) as stream, zipfile.ZipFile(stream, "w") as archive:
            write_array(archive, "features", np.float32, (done, dim), self._each("features"))
            parts_seen = self._each("visibility")
            write_array(archive, "visibility", np.float32, (done, num_parts), parts_seen)
            of_parts = (paths[found] for found in self._each("places"))
            write_array(archive, "paths", paths.dtype, (done,), of_parts)
            write_array(archive, "broken", paths.dtype, (len(broken),), [paths[places]])
            words = {"metric": metric, "fingerprint": self._job.model}
            for name, word in (words | {"job": json.dumps(self._job._asdict())}).items():
                write_array(archive, name, np.array(word).dtype, (), [np.array(word)])
        with write_errors_named(self.path):
            whole.replace(self.path)
        shutil.rmtree(self.folder)
        return broken

    def remove_parts(self) -> None:
        """Remove what a kill between the last two steps has left."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _part(self, number: int) -> Path:
        return self.folder / f"part_{number:06d}.npz"

    def _each(self, name: str) -> Iterator[np.ndarray]:
        """Yield an array of each part, in the list's order."""
        for number in range(self.num_parts):
            with np.load(self._part(number), allow_pickle=False) as part:
                yield part[name]

    def _check(self, path: Path, remedy: str) -> None:
        try:
            with np.load(path, allow_pickle=False) as content:
                found = json.loads(str(content["job"]))
        except FileNotFoundError:  # another process has just assembled the parts
            return
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path} is damaged or not one of ours ({error}); {remedy}, "
                "or choose another --output"
            ) from error
        wanted = self._job._asdict()
        differing = ", ".join(key for key in wanted if found.get(key) != wanted[key])
        if differing:
            raise UserError(
                f"{path} was made of something else (it differs in: {differing}); {remedy}, "
                "or choose another --output"
            )


def list_images(source: str | os.PathLike[str]) -> ImageList:
    """Return the images of a folder and those below it, or of a text file with a path per line.

    The lines are relative to the file's folder; they may hold spaces. Hidden files and links to
    folders are passed over.

    Raises:
        UserError: it is neither, or holds no image.
    """
    if os.path.isdir(source):
        folder = os.fspath(source)
        found = sorted(_images_below(folder))
        if not found:
            raise UserError(f"there are no images in {source} ({', '.join(sorted(SUFFIXES))})")
        return ImageList(folder, np.array(found))
    try:
        text = Path(source).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"cannot read {source} ({error.strerror}): a folder or a list") from error
    lines = [line for line in text.split("\n") if line]
    if not lines or "\0" in text:
        raise UserError(f"{source} is no list of images: a text file with a path per line")
    return ImageList(os.path.dirname(source), np.array(lines))


def write_array(
    archive: zipfile.ZipFile,
    name: str,
    dtype: Any,
    shape: tuple[int, ...],
    chunks: Iterable[np.ndarray],
) -> None:
    """Write the array that ``chunks`` make up, one after the other, into an npz file.

    The file's bytes depend on the array alone, not on the time.
    """
    dtype = np.dtype(dtype)
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for chunk in chunks:
            member.write(np.asarray(chunk, dtype).tobytes())


def _images_below(folder: str) -> Iterator[str]:
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = os.path.relpath(here, folder)
        prefix = "" if below == "." else f"{below}/"
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield prefix + name


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
