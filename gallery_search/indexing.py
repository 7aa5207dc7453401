"""The commands that create, change and describe an index."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import os
import time
from pathlib import Path

import numpy as np

from gallery_search import Filter, Store, create_store, has_store, open_store
from gallery_search.querying import load_model, read_filter
from gallery_search.store.database import NAME
from gallery_search.store.metadata import (
    DATES_FROM,
    parse_name,
    parse_time,
    read_table,
)
from occluded_reid.data.image_names import make_id
from occluded_reid.data.images import warn_of_files
from occluded_reid.deploy.bulk import drop_odd_names, load_batches, log_unreadable, require_all
from occluded_reid.deploy.embedder import Embedder
from occluded_reid.deploy.feature_file import ImageList, list_images
from occluded_reid.evaluation.distances import split_range
from occluded_reid.utils.errors import IncompleteWork, UserError
from occluded_reid.utils.files import read_regular
from occluded_reid.utils.terminal import show

logger = logging.getLogger(__name__)

TIMED_QUERIES = 30
MAX_REMOVED = 0.25  # share of removed vectors, beyond which they are deleted
MAX_BYTES = 2**30  # of an image file
LOST = "are not in the index"
DEFAULT_MODEL = "fed-lite0-drawn"


def build(args: argparse.Namespace) -> None:
    """Create an index or resume an interrupted build; approximate it if it is large."""
    if args.video or args.boxes or args.start:
        args.metadata = cut_video(args)
    build_index(args, load_model(args, args.weights))


def build_index(args: argparse.Namespace, embedder: Embedder) -> None:
    """Create an index of a folder's images, or add what is missing there."""
    # the name of a model of the zoo is no path
    weights = os.path.abspath(args.weights) if os.path.exists(args.weights) else args.weights
    gallery = os.path.abspath(args.gallery)
    images = drop_odd_names(list_images(args.gallery), LOST)
    if not has_store(args.index):
        create_store(
            args.index, metric=embedder.metric, dim=embedder.dim, num_parts=embedder.num_parts,
            fingerprint=embedder.fingerprint, weights=weights, gallery=gallery,
        )  # fmt: skip
    index = open_store(args.index, embedder.fingerprint)
    if index.info().gallery != gallery:
        raise UserError(
            f"{args.index} is an index of {index.info().gallery}, not of {gallery}; choose another "
            "--index or, if the folder has moved, use 'add --gallery'"
        )
    add_images(index, embedder, images, args)


def index_folder(args: argparse.Namespace) -> tuple[str, Embedder]:
    """Index a folder of crops beside it, or add what is new there; return the index and the model.

    ``args`` are those of ``serve``.
    """
    folder = Path(args.folder).resolve()
    if not folder.is_dir():
        raise UserError(f"{args.folder} is no folder; give a folder of crops, or --index")
    if (folder / NAME).exists():
        raise UserError(f"{args.folder} is an index; use --index {args.folder}")
    target = str(folder.with_name(f"{folder.name}.index"))
    logger.info(f"The index of {folder} is in {target}")
    weights = args.weights or (open_store(target).info().weights if has_store(target) else "")
    chosen = {"weights": weights or DEFAULT_MODEL, "gallery": folder, "index": target}
    chosen |= {"command": "build", "kind": "auto"}
    build_args = argparse.Namespace(**{**vars(args), **chosen})
    embedder = load_model(build_args, build_args.weights)
    try:
        build_index(build_args, embedder)
    except IncompleteWork as error:  # the others can be searched
        logger.warning(f"{error}")
    return target, embedder


def cut_video(args: argparse.Namespace) -> str:
    """Cut the crops of ``--video`` into the gallery; return their table."""
    from gallery_search.video import cut_crops

    if not (args.video and args.boxes) or args.metadata:
        raise UserError("--video and --boxes go together, without --metadata; --start is for them")
    start = None if args.start is None else parse_time(args.start)
    if start is not None and start < DATES_FROM:
        raise UserError(f"--start {args.start} is no date; expected 2024-05-31T16:20:00")
    return cut_crops(args.video, args.boxes, args.gallery, start=start)


def add(args: argparse.Namespace) -> None:
    """Add the images that are new or changed below the gallery's folder."""
    index = open_store(args.index)
    info = index.info()
    images = drop_odd_names(list_images(args.gallery or info.gallery), LOST)
    moved = os.path.realpath(images.folder) != os.path.realpath(info.gallery)
    present = index.versions_of(images.paths.tolist()) if moved else {}
    if others := find_changed(present, images.folder):
        raise UserError(
            f"{images.folder} is another gallery than {info.gallery}: {len(others)} of its images "
            f"are others there, such as {show(others[0])}; build an index of its own for it"
        )
    if unknown := set(args.restore) - index.withdrawn():
        raise UserError(
            f"{show(min(unknown))} was not removed from {args.index}: nothing to restore"
        )
    embedder = load_model(args, args.weights or info.weights)
    index = open_store(args.index, embedder.fingerprint)
    add_images(index, embedder, images, args)


def warn_of_links(images: ImageList) -> None:
    """Name the images that are links out of their folder."""
    root = os.path.realpath(images.folder)
    links = [name for name in images.paths.tolist() if os.path.islink(os.path.join(root, name))]
    inside = os.path.join(root, "")
    out = [n for n in links if not os.path.realpath(os.path.join(root, n)).startswith(inside)]
    warn_of_files(f"images are links out of {root}: the page does not show them", out)


def add_images(
    index: Store, embedder: Embedder, images: ImageList, args: argparse.Namespace
) -> None:
    """Add what :func:`choose_images` says, in batches; ``build`` approximates the index, too."""
    warn_of_links(images)
    table = read_table(args.metadata, images.folder) if args.metadata else {}
    unreadable = []
    with index.writer() as writer:
        if updated := writer.update(table.values()):
            logger.info(f"{updated} images in the index get other metadata from {args.metadata}")
        chosen = choose_images(index, images, args.restore)
        new = ImageList(images.folder, np.array(chosen, str))
        parts = [range(s.start, s.stop) for s in split_range(len(new.paths), args.batch_size)]
        for batch in load_batches(new, parts, embedder, workers=args.workers, description="Adding"):
            unreadable += batch.unreadable
            if batch.images is not None:
                paths = [chosen[position] for position in batch.indices]
                embedding = embedder.embed_batch(batch.images, paths)
                items = [table.get(path) or parse_name(path) for path in paths]
                versions = [read_version(Path(images.folder, path)) for path in paths]
                writer.add(items, embedding, versions=versions, overwrite=True)
        log_unreadable(new, unreadable, "they are not in the index")
        broken = [make_id(chosen[position]) for position, _ in unreadable]
        writer.remove(broken, remember=False)  # they were others when they were added
        if unused := len(table.keys() - set(images.paths.tolist())):
            logger.warning(f"{unused} lines of {args.metadata} match no image in {images.folder}")
        if len(unreadable) == len(images.paths):
            raise UserError(f"none of the images below {images.folder} can be read")
        if args.command == "build" and index.is_outdated(args.kind):
            writer.optimize(args.kind)
    print_info(index)
    require_all(new._replace(lost=images.lost), unreadable)


def choose_images(index: Store, images: ImageList, restored: list[str]) -> list[str]:
    """Return the images to embed: new ones, and those whose files were written anew.

    Those that were removed stay out, unless they are ``restored``.
    """
    names = images.paths.tolist()
    present = index.versions_of(names)
    changed = set(find_changed(present, images.folder))
    logger.info(f"{len(present)} of {len(images.paths)} images are in {index.address} already")
    if changed:
        logger.info(f"{len(changed)} of them have changed and are added anew")
    removed = index.withdrawn().difference(restored).intersection(names)
    if removed:
        logger.info(f"{len(removed)} images were removed before; 'add --restore PATH' adds one")
    return [name for name in names if name in changed or name not in present.keys() | removed]


def find_changed(versions: dict[str, str | None], folder: str) -> list[str]:
    """Return the images whose files in ``folder`` have another content than these versions."""
    return [
        name
        for name, version in versions.items()
        if version is not None and not is_version(version, Path(folder, name))
    ]


def read_version(path: Path) -> str | None:
    """Return size, time and digest of a file; None if it cannot be read."""
    try:
        status, content = path.stat(), read_regular(path, MAX_BYTES)
    except OSError:
        return None
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    return f"{status.st_size} {status.st_mtime_ns} {digest}"


def is_version(version: str, path: Path) -> bool:
    """Whether a file has the content of which :func:`read_version` returned ``version``."""
    with contextlib.suppress(OSError):
        status = path.stat()
        if version.startswith(f"{status.st_size} {status.st_mtime_ns} "):
            return True
    return (read_version(path) or "").rpartition(" ")[2] == version.rpartition(" ")[2]


def remove(args: argparse.Namespace) -> None:
    """Remove images; compact once more than a quarter of the vectors are removed ones."""
    index = open_store(args.index)
    filter = read_filter(args, [index])
    if bool(args.paths) == (filter != Filter()):
        raise UserError("give either paths, or --camera, --since and --until")
    with index.writer() as writer:
        known = index.versions_of(args.paths)
        if missing := [path for path in args.paths if path not in known]:
            raise UserError(
                f"{len(missing)} paths are not in {args.index}, the first is {show(missing[0])}; "
                "give them as 'query' prints them. Nothing was removed"
            )
        selected = [make_id(path) for path in known] if args.paths else index.select(filter)
        count = writer.remove(selected)
        print(f"{count} images removed; 'add' leaves them out, unless --restore names them")
        writer.compact(MAX_REMOVED)
    print_info(index)


def optimize(args: argparse.Namespace) -> None:
    """Rebuild the approximation."""
    index = open_store(args.index)
    with index.writer() as writer:
        writer.optimize(args.kind)
    print_info(index)


def show_info(args: argparse.Namespace) -> None:
    """Describe an index and, with ``--time``, time random queries, one at a time."""
    index = open_store(args.index)
    print_info(index)
    if not args.time:
        return
    info = index.info()
    modes = (
        {"search": False, "search --exact": True}
        if index.describe() != "exact"
        else {"search": True}
    )
    queries = np.random.default_rng(0).normal(size=(1 + TIMED_QUERIES, 1, info.dim))
    for name, exact in modes.items():
        times = []
        for query in queries:
            start = time.perf_counter()
            index.search(query, exact=exact)
            times.append(1000 * (time.perf_counter() - start))
        median, slow = np.percentile(times[1:], [50, 90])  # the first one reads the files
        print(f"{name}: {median:.1f} ms for a query, 90 % below {slow:.1f} ms")


def print_info(index: Store) -> None:
    """Print what the index holds."""
    info, items = index.info(), len(index)
    size = ""
    if os.path.isdir(index.address):
        total = sum(entry.stat().st_size for entry in os.scandir(index.address))
        size = f", {total / max(1, items):.0f} bytes each"
    print(f"{index.address}: {items} images{size}")
    print(f"metric {info.metric}, dimension {info.dim}, model {info.fingerprint[:16]}")
    print(f"search: {index.describe()}")
