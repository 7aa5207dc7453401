"""Features of many images: the processes of a job share the parts and write one npz file."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from occluded_reid.data.images import BrokenImage, read_rgb, warn_of_files
from occluded_reid.data.workers import build_worker_options, read_batches
from occluded_reid.deploy.embedder import Embedder
from occluded_reid.deploy.feature_file import FeatureFile, ImageList, Job, UnreadableImage
from occluded_reid.utils.errors import IncompleteWork
from occluded_reid.utils.files import make_folder
from occluded_reid.utils.memory import keep_freed_memory
from occluded_reid.utils.progress import progress
from occluded_reid.utils.terminal import show

logger = logging.getLogger(__name__)

POLL_SECONDS = 2.0
MAX_NAMED = 20
"""Unreadable images that the log names one by one."""


class Batch(NamedTuple):
    """Images that are ready for the model."""

    indices: list[int]  # positions in the list
    images: torch.Tensor | None  # (n, 3, H, W); None if no image of the batch can be read
    unreadable: list[UnreadableImage]  # the other images of the batch


class _PreparedImages(Dataset[Any]):
    def __init__(self, images: ImageList, embedder: Embedder):
        self._images = images
        self._transform = embedder.transform

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor] | UnreadableImage:
        path = os.path.join(self._images.folder, self._images.paths[index])
        try:
            return index, self._transform(read_rgb(path))
        except BrokenImage as error:
            return UnreadableImage(index, error.reason)


def _collate(samples: list[tuple[int, torch.Tensor] | UnreadableImage]) -> Batch:
    unreadable = [sample for sample in samples if isinstance(sample, UnreadableImage)]
    read = [sample for sample in samples if not isinstance(sample, UnreadableImage)]
    images = torch.stack([image for _, image in read]) if read else None
    return Batch([index for index, _ in read], images, unreadable)


def load_batches(
    images: ImageList, batches: Sequence[range], embedder: Embedder, *,
    workers: int, description: str, show_progress: bool = True,
) -> Iterable[Batch]:  # fmt: skip
    """Read and prepare the images of each batch in ``workers`` processes; 0 reads in this one.

    From here on the process keeps the memory that it frees, see :func:`keep_freed_memory`.
    """
    keep_freed_memory()
    loader: DataLoader[Any] = DataLoader(
        _PreparedImages(images, embedder),
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=_collate,
        pin_memory=embedder.device.type == "cuda",
        multiprocessing_context="fork" if workers else None,  # spawning would copy the model
        **build_worker_options(workers),
    )
    prepared = read_batches(loader)
    if not show_progress:
        return prepared
    return progress(prepared, total=len(batches), description=description, unit="batches")


def drop_odd_names(images: ImageList, consequence: str) -> ImageList:
    """Count images without a name in UTF-8, which databases need, as lost."""
    names = images.paths.tolist()
    odd = [name for name in names if name.encode("utf-8", "replace").decode() != name]
    kept = sorted(set(names).difference(odd))
    warn_of_files(f"images {consequence}, as their names are not in UTF-8", odd)
    return images._replace(paths=np.array(kept, str), lost=[*images.lost, *odd])


def log_unreadable(
    images: ImageList, unreadable: Sequence[UnreadableImage], consequence: str
) -> None:
    """Warn of the images that cannot be read; ``consequence`` ends the summary."""
    for position, reason in unreadable[:MAX_NAMED]:
        logger.warning(f"Cannot read {show(images.paths[position])} ({reason})")
    if unreadable:
        count = f"{len(unreadable)} of {len(images.paths)}"
        logger.warning(f"{count} images cannot be read; {consequence}")


def require_all(images: ImageList, unreadable: Sequence[UnreadableImage]) -> None:
    """Raise IncompleteWork, once the rest is done, if something in a folder is left out."""
    paths = [os.path.join(images.folder, images.paths[each.position]) for each in unreadable]
    closed = [path for path in paths if not os.access(path, os.R_OK)]
    if lost := [*closed, *images.lost]:
        raise IncompleteWork(
            f"{len(lost)} files or folders of {images.folder} are left out, the first is "
            f"{show(lost[0])}; the others are done"
        )


def join_job() -> tuple[int, int]:
    """Read this process's rank and the number of processes, as torchrun sets them; pick its GPU.

    Only rank 0 reports what it does; the others log warnings.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if rank:
        logging.disable(logging.INFO)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return rank, world_size


def extract_features(
    embedder: Embedder, images: ImageList, output: str | os.PathLike[str], *,
    part_size: int = 2048, workers: int = 0, rank: int = 0, world_size: int = 1,
) -> None:  # fmt: skip
    """Write the features of ``images`` to an npz file; rank 0 joins what all ranks wrote.

    An interrupted call goes on where it was when it is repeated: the parts, of ``part_size`` images
    each, lie in ``<output>.parts`` meanwhile. This process does those whose number modulo
    ``world_size`` is its rank. See docs/embedding.md for the arrays in the file.

    Raises:
        IncompleteWork: the file is written, but an image or folder cannot be opened.
        UserError: the output holds features of another model, list or precision; no image can be
            read; or the disk is full.
    """
    job = Job(images.sha256, embedder.fingerprint, embedder.precision, part_size)
    file = FeatureFile(output, job, images)
    make_folder(file.path.parent)
    file.check_parts(embedder.dim, embedder.num_parts)
    missing = file.list_missing_parts()  # before is_finished: another process may join the parts
    if file.is_finished():
        file.remove_parts()
        print(f"{file.path} is there already")
        return
    total = len(images.paths)
    parts = [part for part in missing if part % world_size == rank]
    logger.info(f"{total} images; {len(parts)} of {file.num_parts} parts to do")
    for part in embed_parts(embedder, images, parts, part_size, workers, show_progress=rank == 0):
        file.write_part(*part)
    if rank == 0:
        _wait_for_others(file)
        unreadable = file.assemble(embedder.metric, embedder.dim, embedder.num_parts)
        print(f"{file.path}: features of {total - len(unreadable)} images")
        advice = "to try them again, delete the file and repeat the command"
        log_unreadable(images, unreadable, f"the array `broken` names them; {advice}")
        require_all(images, unreadable)


class EmbeddedPart(NamedTuple):
    """The images of a part, whose position in the list divided by its size is the part's number."""

    number: int
    indices: np.ndarray  # (n,), positions of the readable images in the list
    rows: np.ndarray  # (n, D)
    visibility: np.ndarray  # (n, P)
    unreadable: list[UnreadableImage]


def embed_parts(
    embedder: Embedder, images: ImageList, parts: Sequence[int], part_size: int, workers: int, *,
    show_progress: bool = True,
) -> Iterator[EmbeddedPart]:  # fmt: skip
    """Embed these parts of a list; yield each as soon as it is complete."""
    batches = []
    for part in parts:
        stop = min((part + 1) * part_size, len(images.paths))
        starts = range(part * part_size, stop, embedder.batch_size)
        batches += [range(start, min(start + embedder.batch_size, stop)) for start in starts]
    loaded = load_batches(
        images, batches, embedder, workers=workers, description="Features",
        show_progress=show_progress,
    )  # fmt: skip

    def part_of(batch: Batch) -> int:
        return (batch.indices[0] if batch.indices else batch.unreadable[0].position) // part_size

    for part, batches_of_part in itertools.groupby(loaded, part_of):
        indices: list[int] = []
        unreadable: list[UnreadableImage] = []
        embeddings = []
        for batch in batches_of_part:
            indices += batch.indices
            unreadable += batch.unreadable
            if batch.images is not None:
                paths = [images.paths[index] for index in batch.indices]
                embeddings.append(embedder.embed_batch(batch.images, paths))
        embedding = embedder.concatenate(embeddings)
        rows = embedder.make_rows(embedding), embedding.visibility
        yield EmbeddedPart(part, np.array(indices), *rows, unreadable)


def _wait_for_others(file: FeatureFile) -> None:
    for polls in itertools.count():
        missing = file.list_missing_parts()
        if not missing:
            return
        if polls % 30 == 0:
            logger.info(f"Waiting for {len(missing)} parts of other processes in {file.folder}")
        time.sleep(POLL_SECONDS)
