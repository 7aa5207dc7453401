"""Generate the data set on first use: once, whole, and the same each time.

The pixels depend on size, seed and :data:`~occluded_reid.synthetic.streams.VERSION`, not on the
number of workers. Other versions of OpenCV or NumPy may round a pixel differently, and other
versions of OpenCV encode the same pixels to different bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from occluded_reid.synthetic.plan import SPLITS, get_size
from occluded_reid.synthetic.render_pool import store_images
from occluded_reid.synthetic.streams import VERSION
from occluded_reid.synthetic.truth import Truth, read_truth
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import (
    atomic_write,
    hash_file,
    make_folder,
    make_folder_once,
    read_json,
    write_json,
)
from occluded_reid.utils.progress import progress

_MAX_WORKERS, _IMAGES_PER_WORKER = 16, 150


def generate(
    root: str | os.PathLike[str], size: str = "small", seed: int = 0, workers: int | None = None
) -> Path:
    """Generate the data set unless it exists, and return its folder.

    >>> generate("datasets", size="tiny").name  # doctest: +SKIP
    'tiny-seed0-v3'

    Args:
        root: folder of all data sets; the set goes to ``SyntheticOccluded/`` below it.
        size: a key of :data:`occluded_reid.synthetic.SIZES`.
        seed: not negative; another seed gives other people, scenes and images.
        workers: number of processes; by default one per core, fewer for a small set.

    Returns:
        The folder ``<root>/SyntheticOccluded/<size>-seed<seed>-v<VERSION>``.
    """
    num_images = get_size(size).num_images
    if seed < 0:
        raise UserError(f"the seed of the synthetic set must be 0 or more, not {seed}")
    folder = Path(root) / "SyntheticOccluded" / f"{size}-seed{seed}-v{VERSION}"
    workers = workers or _choose_workers(num_images)
    return make_folder_once(
        folder, lambda target: _fill_folder(target, folder.name, size, seed, workers), _find_fault
    )


def verify(folder: str | os.PathLike[str]) -> list[str]:
    """Read every file of the set in ``folder``; return one message for each that is broken."""
    folder = Path(folder)
    advice = f"delete {folder} and generate the set again"
    try:
        manifest, truths = _read_manifest(folder), read_truth(folder)
    except UserError as error:
        return [str(error)]
    problems, digests = [], []
    # truth.jsonl is in the order of the images' numbers, as the digest in the manifest is
    for truth in progress(truths.values(), total=len(truths), description="verifying"):
        try:
            content = (folder / truth.path).read_bytes()
        except OSError as error:
            problems.append(f"{truth.path} cannot be read ({error.strerror}); {advice}")
            continue
        digests.append(hashlib.sha256(content).hexdigest())
        if not _is_jpeg_of(content, truth):
            problems.append(f"{truth.path} is not a whole JPEG of {truth.size} pixels; {advice}")
    if not problems and _hash_digests(digests) != manifest["images_sha256"]:
        problems.append(f"the images differ from those that were generated; {advice}")
    if hash_file(folder / "truth.jsonl") != manifest["truth_sha256"]:
        problems.append(f"truth.jsonl was changed; {advice}")
    return problems


def _is_jpeg_of(content: bytes, truth: Truth) -> bool:
    # OpenCV 4 decodes a truncated file and fills the rest with gray, so check its end, too.
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if image is None or not content.endswith(b"\xff\xd9"):
        return False
    return image.shape[1::-1] == truth.size


def _choose_workers(num_images: int) -> int:
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return max(min(cores, _MAX_WORKERS, num_images // _IMAGES_PER_WORKER), 1)


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / "manifest.json")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} has no readable manifest.json; delete the folder and generate the set again"
        ) from error


def _find_fault(folder: Path) -> str:
    """Return why the set has to be drawn, or ``""``; raise if a once complete set is damaged."""
    if not (folder / "manifest.json").is_file():
        return "it has no manifest.json"
    manifest = _read_manifest(folder)
    for split in SPLITS:
        sizes = [path.stat().st_size for path in (folder / split).glob("*.jpg")]
        expected = manifest["counts"][split], manifest["bytes"][split]
        if (len(sizes), sum(sizes)) != expected:
            raise UserError(
                f"{folder / split} holds {len(sizes)} images of {sum(sizes)} bytes, expected "
                f"{expected[0]} of {expected[1]}; delete {folder} and generate the set again"
            )
    return ""


def _fill_folder(folder: Path, name: str, size: str, seed: int, workers: int) -> None:
    for split in SPLITS:
        make_folder(folder / split)
    counts = get_size(size)
    reports = progress(
        store_images(folder, size, seed, workers), total=counts.num_images,
        description=f"drawing {name}", unit="images",
    )  # fmt: skip
    digests, sizes = [], dict.fromkeys(SPLITS, 0)
    with atomic_write(folder / "truth.jsonl", "w") as stream:
        for report in reports:
            stream.write(report["truth"] + "\n")
            digests.append(report["digest"])
            sizes[json.loads(report["truth"])["split"]] += report["bytes"]
    manifest = {
        "size": size, "seed": seed, "version": VERSION,
        "counts": counts.count_images(),
        "bytes": sizes,
        "truth_sha256": hash_file(folder / "truth.jsonl"),
        "images_sha256": _hash_digests(digests),
    }  # fmt: skip
    write_json(folder / "manifest.json", manifest, sort_keys=True)


def _hash_digests(digests: list[str]) -> str:
    # in the order of the images' numbers
    return hashlib.sha256("".join(digests).encode()).hexdigest()
