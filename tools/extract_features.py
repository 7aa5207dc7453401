#!/usr/bin/env python
"""Write the features of many images to an npz file.

It holds features (N, D) float32, visibility (N, P) float32, paths (N,), the metric by which the
features are to be compared, the model's fingerprint, and as `broken` the paths of images that could
not be read. Those are named at the end as well; the exit code is 0 unless no image can be read.

The work is kept in parts beside the file: type the same command again after an interruption. Under
torchrun, or with RANK and WORLD_SIZE set on each machine, every process takes its share of the
parts, and the first one joins them; all of them must see the output's folder.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from methods import ADD_KEYS
from torch.utils.data import DataLoader, Dataset

from occluded_reid.data.images import READ_ERRORS
from occluded_reid.data.workers import read_batches, worker_options
from occluded_reid.deploy.embedder import Embedded, Embedder, load, read_bgr
from occluded_reid.deploy.feature_file import Broken, FeatureFile, ImageList, Job, list_images
from occluded_reid.engine.defaults import setup_logging
from occluded_reid.utils.cli import run_command
from occluded_reid.utils.files import make_folder
from occluded_reid.utils.progress import progress

logger = logging.getLogger("occluded_reid.extract_features")

SECONDS_BETWEEN_LOOKS = 2.0
NAMED = 20  # broken images at the end


class Batch(NamedTuple):
    """Prepared images of one part.

    Attributes:
        places: of the images in the list.
        images: (n, 3, H, W), or None where none can be read.
        broken: the others.
    """

    places: list[int]
    images: torch.Tensor | None
    broken: list[Broken]


class PreparedImages(Dataset[Any]):
    """The images of a list as a model takes them; in place of a broken one, what is wrong."""

    def __init__(self, images: ImageList, embedder: Embedder):
        self._images = images
        self._prepare = embedder.prepare

    def __getitem__(self, place: int) -> tuple[int, torch.Tensor] | Broken:
        path = os.path.join(self._images.folder, self._images.paths[place])
        try:
            return place, self._prepare(read_bgr(path))
        except READ_ERRORS as error:
            return Broken(place, f"{type(error).__name__}: {error}")


def collate(samples: list[tuple[int, torch.Tensor] | Broken]) -> Batch:
    """Lay the images that could be read into one tensor."""
    broken = [sample for sample in samples if isinstance(sample, Broken)]
    read = [sample for sample in samples if not isinstance(sample, Broken)]
    images = torch.stack([image for _, image in read]) if read else None
    return Batch([place for place, _ in read], images, broken)


def batches_of(
    images: ImageList, parts: Iterable[int], embedder: Embedder, args: argparse.Namespace
) -> DataLoader[Any]:
    """Return the batches of some parts; none crosses the border of a part."""
    size, total = args.part_size, len(images.paths)
    places = [
        range(start, min(start + embedder.batch_size, (part + 1) * size, total))
        for part in parts
        for start in range(part * size, min((part + 1) * size, total), embedder.batch_size)
    ]
    return prepared_batches(images, places, embedder, args.workers)


def prepared_batches(
    images: ImageList, places: Sequence[range], embedder: Embedder, workers: int
) -> DataLoader[Any]:
    """Return a :class:`Batch` for each of ``places``, of numbers in the list."""
    return DataLoader(
        PreparedImages(images, embedder),
        batch_sampler=places,  # type: ignore[arg-type]
        collate_fn=collate,
        pin_memory=embedder.device.type == "cuda",
        multiprocessing_context="fork" if workers else None,  # the model stays here
        **worker_options(workers),
    )


def write_parts(
    file: FeatureFile, batches: Iterable[Batch], part_size: int, embedder: Embedder
) -> None:
    """Give the batches to the model and write each part when it is done."""

    def part_of(batch: Batch) -> int:
        return (batch.places[0] if batch.places else batch.broken[0].place) // part_size

    for number, of_part in itertools.groupby(batches, part_of):
        places: list[int] = []
        broken: list[Broken] = []
        found = [embedder.embed([])]
        for batch in of_part:
            places += batch.places
            broken += batch.broken
            if batch.images is not None:
                found.append(embedder.embed_prepared(batch.images))
        embedded = Embedded(*map(np.concatenate, zip(*found, strict=True)))
        file.write_part(number, np.array(places, np.int64), embedded, broken)


def wait_for_others(file: FeatureFile) -> None:
    """Return once all parts are there."""
    waiting = 0
    while missing := file.missing():
        if waiting % 30 == 0:
            logger.info(f"Waiting for {len(missing)} parts of other processes in {file.folder}")
        waiting += 1
        time.sleep(SECONDS_BETWEEN_LOOKS)


def extract(args: argparse.Namespace) -> None:
    """Do this process's share; the first process joins the parts."""
    rank, ranks = (int(os.environ.get(*each)) for each in (("RANK", "0"), ("WORLD_SIZE", "1")))
    setup_logging()
    if rank:
        logging.disable(logging.INFO)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    images = list_images(args.input)
    embedder = load(
        args.weights,
        None,
        config=args.config_file,
        overrides=args.opts,
        batch_size=args.batch_size,
        bf16=args.bf16,
        trust_checkpoint=args.trust_checkpoint,
        add_keys=ADD_KEYS,
    )
    precision = "bfloat16" if args.bf16 else "float32"
    job = Job(images.sha256(), embedder.fingerprint, precision, args.part_size)
    file = FeatureFile(args.output, job, images)
    make_folder(file.path.parent)
    file.check_parts()
    missing = file.missing()
    if file.is_finished():
        file.remove_parts()
        print(f"{file.path} is there already")
        return
    todo = [part for part in missing if part % ranks == rank]
    logger.info(f"{len(images.paths)} images; {len(todo)} of {file.num_parts} parts to do")
    write_parts(
        file, _shown(batches_of(images, todo, embedder, args), rank), args.part_size, embedder
    )
    if rank == 0:
        wait_for_others(file)
        _report(file, images, file.assemble(embedder.metric, embedder.dim, embedder.num_parts))


def _shown(batches: DataLoader[Any], rank: int) -> Iterable[Batch]:
    if rank:  # one bar is enough
        return read_batches(batches)
    return progress(
        read_batches(batches), total=len(batches), description="Features", unit="batches"
    )


def _report(file: FeatureFile, images: ImageList, broken: list[Broken]) -> None:
    print(f"{file.path}: features of {len(images.paths) - len(broken)} images")
    for place, reason in broken[:NAMED]:
        logger.warning(f"Cannot be read: {images.paths[place]} ({reason})")
    if broken:
        logger.warning(
            f"{len(broken)} of {len(images.paths)} images cannot be read; the array `broken` "
            "names them. To try them again, delete the file and type the command again"
        )


def positive(text: str) -> int:
    """A number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = top.add_argument
    add("--weights", required=True, metavar="W", help="a weights file, or a run's folder")
    add("--input", required=True, metavar="DIR_OR_LIST", help="images, or a file of their paths")
    add("--output", required=True, metavar="F.npz", help="the parts stand in F.npz.parts")
    add(
        "--config-file",
        default="",
        metavar="FILE",
        help="default: the config.yaml in the run's folder or beside the weights",
    )
    add("--batch-size", type=positive, default=64, metavar="N", help="images at a time (64)")
    workers = min(4, os.cpu_count() or 1)
    add("--workers", type=int, default=workers, metavar="N", help=f"readers of images ({workers})")
    add("--part-size", type=positive, default=2048, metavar="N", help="images in a part (2048)")
    add("--bf16", action="store_true", help="compute in bfloat16; the features stay float32")
    add("--trust-checkpoint", action="store_true", help="read a file that can run code")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration overrides")
    return top


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    args = parser().parse_args(words)
    return run_command(lambda: extract(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(command())
