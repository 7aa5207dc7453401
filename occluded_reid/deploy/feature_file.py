"""Features of a long image list: written in parts that survive an interruption, then as one file.

Part k holds the images k * S to (k + 1) * S - 1 of the list, whichever process writes it, so a job
can be continued by another number of processes.

Shapes: N readable images, D dimensions of a row, P parts of a person, S images per part of a file.
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

from occluded_reid.data.images import IMAGE_SUFFIXES, is_image_name, warn_of_files
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import (
    atomic_write,
    diagnose_zip,
    explain_write_errors,
    make_folder,
    open_regular,
)
from occluded_reid.utils.tables import clean_path, is_outside, read_list
from occluded_reid.utils.terminal import show


class ImageList(NamedTuple):
    """A folder, and an array (N,) of unicode paths relative to it."""

    folder: str
    paths: np.ndarray
    lost: Sequence[str] = ()  # folders that cannot be listed, links that lead nowhere, and such

    @property
    def sha256(self) -> str:
        """Hash of the folder and of the paths in their order."""
        digest = hashlib.sha256(_encode(os.path.abspath(self.folder)))
        for path in self.paths:
            digest.update(b"\0" + _encode(path))
        return digest.hexdigest()


class Job(NamedTuple):
    """Settings that all parts of one file share."""

    images: str  # hash of the image list
    model: str  # fingerprint
    precision: str
    part_size: int  # S


class UnreadableImage(NamedTuple):
    """Position of an image in the list, and why it cannot be read."""

    position: int
    reason: str


class FeatureFile:
    """An npz file whose parts are collected in the folder ``<path>.parts``."""

    def __init__(self, path: str | os.PathLike[str], job: Job, images: ImageList):
        self.path = Path(path)
        self.folder = self.path.with_name(f"{self.path.name}.parts")
        self.num_parts = -(-len(images.paths) // job.part_size)
        self._job = job
        self.images = images

    def is_finished(self) -> bool:
        """Whether the file exists; its parts may exist for a moment longer."""
        if not self.path.exists():
            return False
        self._read_checked(self.path, "delete it")
        if self.folder.exists() and (fault := diagnose_zip(self.path)):
            raise UserError(
                f"{self.path} is damaged ({fault}); delete it and repeat the command, which "
                f"continues from the parts in {self.folder}"
            )
        return True

    def list_missing_parts(self) -> list[int]:
        """Return the numbers of the parts that nobody has written yet."""
        return [number for number in range(self.num_parts) if not self._part(number).exists()]

    def check_parts(self, dim: int, num_parts: int) -> None:
        """Raise a UserError if a part is damaged, from another job, or does not fit its place."""
        numbers = {self._part(number): number for number in range(self.num_parts)}
        names = ("features", "visibility", "places", "broken", "reasons")
        remedy = f"delete the folder {self.folder}, or only this part"
        for path in sorted(self.folder.glob("part_*.npz")):
            arrays = self._read_checked(path, remedy, names)
            if arrays is None:
                continue
            first = numbers.get(path, self.num_parts) * self._job.part_size
            rows = np.arange(first, min(first + self._job.part_size, len(self.images.paths)))
            broken = np.isin(rows, arrays["broken"])
            count = len(rows) - broken.sum()
            if not (
                np.array_equal(arrays["places"], rows[~broken])
                and np.array_equal(arrays["broken"], rows[broken])
                and arrays["reasons"].shape == rows[broken].shape
                and arrays["features"].shape == (count, dim)
                and arrays["visibility"].shape == (count, num_parts)
                and arrays["features"].dtype == arrays["visibility"].dtype == np.float32
                and arrays["places"].dtype == arrays["broken"].dtype == np.int64
                and np.isfinite(arrays["features"]).all()
                and np.isfinite(arrays["visibility"]).all()
            ):
                raise UserError(
                    f"{path} does not hold {len(rows)} images from position {first} on, of "
                    f"dimension {dim} and {num_parts} parts, all finite; {remedy}, or choose "
                    "another --output"
                )

    def write_part(
        self, number: int, indices: np.ndarray, rows: np.ndarray, visibility: np.ndarray,
        unreadable: Sequence[UnreadableImage],
    ) -> None:  # fmt: skip
        """Write part k atomically: the readable images at ``indices`` (n,), and the others.

        ``rows`` (n, D) are their vectors, beside their visibility (n, P).
        """
        arrays: dict[str, Any] = {
            "features": rows,
            "visibility": visibility,
            "places": indices.astype(np.int64),
            "broken": np.array([image.position for image in unreadable], np.int64),
            "reasons": np.array([image.reason for image in unreadable], np.str_),
            "job": np.array(json.dumps(self._job._asdict())),
        }
        content = io.BytesIO()
        np.savez(content, **arrays)
        make_folder(self.folder)
        with atomic_write(self._part(number)) as stream:
            stream.write(content.getbuffer())

    def assemble(self, metric: str, dim: int, num_parts: int) -> list[UnreadableImage]:
        """Join all parts into the file and remove them; memory holds one part at a time.

        Returns the images that could not be read; it is an error if not one could.
        """
        self.check_parts(dim, num_parts)  # those of other processes, too
        paths = self.images.paths
        readable = sum(len(indices) for indices in self._iterate_parts("places"))
        reasons = [str(reason) for part in self._iterate_parts("reasons") for reason in part]
        indices = np.concatenate(list(self._iterate_parts("broken")))
        unreadable = [UnreadableImage(int(i), why) for i, why in zip(indices, reasons, strict=True)]
        if not readable:
            shutil.rmtree(self.folder)
            raise UserError(
                f"none of the {len(paths)} images can be read; the first is "
                f"{show(os.path.join(self.images.folder, paths[0]))} ({unreadable[0].reason})"
            )
        arrays: dict[str, tuple[Any, tuple[int, ...], Iterable[np.ndarray]]] = {
            "features": (np.float32, (readable, dim), self._iterate_parts("features")),
            "visibility": (np.float32, (readable, num_parts), self._iterate_parts("visibility")),
            "paths": (paths.dtype, (readable,), (paths[i] for i in self._iterate_parts("places"))),
            "broken": (paths.dtype, (len(unreadable),), [paths[indices]]),
        }
        job = json.dumps(self._job._asdict())
        for name, text in (("metric", metric), ("fingerprint", self._job.model), ("job", job)):
            arrays[name] = (np.array(text).dtype, (), [np.array(text)])
        joined = self.folder / "whole.npz"  # a killed process leaves it to the folder's removal
        with atomic_write(joined) as stream, zipfile.ZipFile(stream, "w") as archive:
            for name, (dtype, shape, chunks) in arrays.items():
                write_array(archive, name, dtype, shape, chunks)
        with explain_write_errors(self.path):
            joined.replace(self.path)
        shutil.rmtree(self.folder)
        return unreadable

    def remove_parts(self) -> None:
        """Remove the parts of a finished file, left if a process was killed while joining them."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _part(self, number: int) -> Path:
        return self.folder / f"part_{number:06d}.npz"

    def _iterate_parts(self, name: str) -> Iterator[np.ndarray]:
        """Yield one array of each part, in the list's order."""
        for number in range(self.num_parts):
            with np.load(self._part(number), allow_pickle=False) as part:
                yield part[name]

    def _read_checked(
        self, path: Path, remedy: str, names: Sequence[str] = ()
    ) -> dict[str, np.ndarray] | None:
        """Return some arrays of a file of this job; None if it is gone."""
        try:
            with open_regular(path) as stream:
                size = os.fstat(stream.fileno()).st_size
                if names and (fault := diagnose_zip(stream, limit=size)):  # nothing is packed
                    raise ValueError(fault)
                stream.seek(0)
                with np.load(stream, allow_pickle=False) as content:
                    arrays = {name: content[name] for name in names}
                    job = dict(json.loads(str(content["job"])))
        except FileNotFoundError:  # another process has just joined the parts
            return None
        except Exception as error:  # damaged bytes make numpy and zipfile raise almost anything
            raise UserError(
                f"{path} is damaged or not one of ours ({error}); {remedy}, "
                "or choose another --output"
            ) from error
        expected = self._job._asdict()
        differing = ", ".join(key for key in expected if job.get(key) != expected[key])
        if differing:
            raise UserError(
                f"{path} is from another job (it differs in: {differing}); {remedy}, "
                "or choose another --output"
            )
        return arrays


def list_images(source: str | os.PathLike[str]) -> ImageList:
    """List the images below a folder, or those that a text file names, one path per line.

    Paths in the file are relative to its folder and may contain spaces; at least one of them must
    exist. In a folder, hidden files and links to folders are
    skipped; other files that are no images are named in the log.

    >>> list_images("crops").paths  # doctest: +SKIP
    array(['0001.jpg', 'camera2/0001.jpg'], dtype='<U16')
    """
    if os.path.isdir(source):
        return _find_images(os.fspath(source))
    if not os.path.exists(source):
        raise UserError(f"cannot read {source}: there is no such folder or list of images")
    folder = os.path.dirname(source)
    paths = [clean_path(line, folder) for line in read_list(source)]
    if not any(os.path.isfile(os.path.join(folder, path)) for path in paths):
        first = f" (the first is {paths[0][:100]!r})" if paths else ""
        raise UserError(
            f"{source} is not a list of images: none of its {len(paths)} lines{first} names a "
            "file; paths are relative to the list's folder, one per line"
        )
    outside = [path for path in paths if is_outside(path)]
    warn_of_files(f"images of {source} are read that lie outside its own folder", outside)
    return ImageList(folder, np.array(paths))


def write_array(
    archive: zipfile.ZipFile, name: str, dtype: Any, shape: tuple[int, ...],
    chunks: Iterable[np.ndarray],
) -> None:  # fmt: skip
    """Write one array, given as consecutive chunks, into an npz file.

    ``np.savez`` would need the whole array in memory. The bytes depend on the array alone.
    """
    dtype = np.dtype(dtype)
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for chunk in chunks:
            member.write(np.asarray(chunk, dtype).tobytes())


def _find_images(folder: str) -> ImageList:
    """Find the images below a folder, and name in the log whatever else is there."""
    images: list[str] = []
    others: list[str] = []
    links: list[str] = []
    lost: list[str] = []

    def note(error: OSError) -> None:
        lost.append(f"{os.path.relpath(error.filename, folder)} ({error.strerror})")

    for here, folders, names in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = os.path.relpath(here, folder)
        prefix = "" if below == "." else f"{below}/"
        for name in filter(lambda name: os.path.islink(os.path.join(here, name)), folders):
            home, target = os.path.realpath(here), os.path.realpath(os.path.join(here, name))
            is_circle = os.path.commonpath([home, target]) == target
            (lost if is_circle else links).append(prefix + name)
        for name in (name for name in names if not name.startswith(".")):
            if is_image_name(name):
                images.append(prefix + name)
            else:
                is_there = os.path.exists(os.path.join(here, name))
                (others if is_there else lost).append(prefix + name)
    warn_of_files(f"files in {folder} are passed over, by name they are no images", others)
    warn_of_files(f"links to folders in {folder} are passed over", links)
    warn_of_files(f"folders or links in {folder} cannot be opened", lost)
    if not images:
        raise UserError(f"there are no images in {folder} ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return ImageList(folder, np.array(sorted(images)), lost)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
