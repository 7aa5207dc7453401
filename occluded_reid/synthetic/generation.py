"""Making the data set on first use: once, whole, and the same each time.

:mod:`occluded_reid.utils.files` sees to it that one process draws while the others wait, and that
nothing half-made takes the folder's name; the manifest is written last.

The pixels depend on size, seed and :data:`~occluded_reid.synthetic.streams.VERSION`, not on the
number of processes. Another version of OpenCV or NumPy may round a pixel otherwise, and another
version of OpenCV writes other bytes for the same pixels.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from occluded_reid.synthetic.render_pool import Report, store_pictures
from occluded_reid.synthetic.sizes import SPLITS, size_named
from occluded_reid.synthetic.streams import VERSION
from occluded_reid.synthetic.truth import read_truth
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import make_folder, make_once, whole_file, write_json
from occluded_reid.utils.progress import progress

logger = logging.getLogger(__name__)

_MAX_WORKERS = 16
_IMAGES_PER_WORKER = 150
_JPEG_END = b"\xff\xd9"


def generate(
    root: str | os.PathLike[str], size: str = "small", seed: int = 0, workers: int | None = None
) -> Path:
    """Make the data set unless it is there, and return its folder.

    Args:
        root: folder of all data sets; the set goes to ``SyntheticOccluded/`` below it.
        size: a key of :data:`occluded_reid.synthetic.SIZES`.
        seed: not negative; another seed gives other people, places and pictures.
        workers: number of processes; by default one for each core, fewer for a small set.

    Returns:
        The folder ``<root>/SyntheticOccluded/<size>-seed<seed>-v<VERSION>``.

    Raises:
        UserError: unknown size, negative seed, a place that cannot be written, or a set on the disk
            of which files are missing or cut off.
    """
    num_images = size_named(size).num_images
    if seed < 0:
        raise UserError(f"the seed of the synthetic set must be 0 or more, not {seed}")
    folder = Path(root) / "SyntheticOccluded" / f"{size}-seed{seed}-v{VERSION}"
    processes = workers or _default_workers(num_images)
    return make_once(
        folder, lambda made: _generate(made, folder.name, size, seed, processes), _fault_of
    )


def verify(folder: str | os.PathLike[str]) -> list[str]:
    """Read every file of a generated set and name what is broken.

    Args:
        folder: what :func:`generate` returned.

    Returns:
        One sentence for each broken or missing file with what to do; empty if all is well.
    """
    folder = Path(folder)
    advice = f"delete {folder} and generate the set again"
    try:
        manifest, truths = _manifest(folder), read_truth(folder)
    except UserError as error:
        return [str(error)]
    problems, digests = [], []
    for path, truth in progress(
        sorted(truths.items(), key=_running_number), total=len(truths), description="verifying"
    ):
        try:
            content = (folder / path).read_bytes()
        except OSError as error:
            problems.append(f"{path} cannot be read ({error.strerror}); {advice}")
            continue
        digests.append(hashlib.sha256(content).hexdigest())
        if _decoded_size(content) != truth.size:
            problems.append(f"{path} is no whole JPEG of {truth.size} pixels; {advice}")
    if not problems and _joint_digest(digests) != manifest["images_sha256"]:
        problems.append(f"the pictures differ from those that were generated; {advice}")
    if _file_digest(folder / "truth.jsonl") != manifest["truth_sha256"]:
        problems.append(f"truth.jsonl was changed; {advice}")
    return problems


def _running_number(item: tuple[str, Any]) -> str:
    return item[0][-10:]


def _decoded_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG file; None if it is damaged.

    OpenCV 4 decodes a file that was cut off and fills the rest with grey; so its end counts too.
    """
    if not content.endswith(_JPEG_END):
        return None
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    return None if image is None else (image.shape[1], image.shape[0])


def _default_workers(num_images: int) -> int:
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return max(min(cores, _MAX_WORKERS, num_images // _IMAGES_PER_WORKER), 1)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} has no readable manifest.json; delete the folder and generate the set again"
        ) from error


def _fault_of(folder: Path) -> str:
    """Return why the set is to be drawn, judged by its manifest and its files; ``""``: it is not.

    Raises:
        UserError: it was complete once, but files are missing or have other sizes.
    """
    if not (folder / "manifest.json").is_file():
        return "it has no manifest.json"
    manifest = _manifest(folder)
    for split in SPLITS:
        sizes = _file_sizes(folder / split)
        expected = manifest["counts"][split], manifest["bytes"][split]
        if (len(sizes), sum(sizes)) != expected:
            raise UserError(
                f"{folder / split} holds {len(sizes)} pictures of {sum(sizes)} bytes, expected "
                f"{expected[0]} of {expected[1]}; delete {folder} and generate the set again"
            )
    return ""


def _file_sizes(folder: Path) -> list[int]:
    try:
        with os.scandir(folder) as entries:
            return [entry.stat().st_size for entry in entries if entry.name.endswith(".jpg")]
    except FileNotFoundError:
        return []


def _generate(folder: Path, name: str, size: str, seed: int, workers: int) -> None:
    for split in SPLITS:
        make_folder(folder / split)
    counts = size_named(size)
    reports = progress(
        store_pictures(folder, size, seed, workers),
        total=counts.num_images,
        description=f"drawing {name}",
        unit="images",
        logger=logger,
    )
    ordered = sorted(reports, key=lambda report: report["number"])
    with whole_file(folder / "truth.jsonl", "w") as stream:
        stream.writelines(report["truth"] + "\n" for report in ordered)
    manifest = {
        "size": size,
        "seed": seed,
        "version": VERSION,
        "counts": counts.counts(),
        "bytes": _bytes_per_split(ordered),
        "truth_sha256": _file_digest(folder / "truth.jsonl"),
        "images_sha256": _joint_digest([report["digest"] for report in ordered]),
    }
    write_json(folder / "manifest.json", manifest, sort_keys=True)


def _bytes_per_split(reports: list[Report]) -> dict[str, int]:
    sums = dict.fromkeys(SPLITS, 0)
    for report in reports:
        sums[json.loads(report["truth"])["split"]] += report["bytes"]
    return sums


def _joint_digest(digests: list[str]) -> str:
    """One SHA-256 over those of all pictures in the order of their running numbers."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
