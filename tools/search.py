#!/usr/bin/env python
"""Search a gallery of images for the person in a picture.

build     make an index of the images below a folder, or go on with an interrupted one
add       add the images that are new below the gallery's folder
query     print, and draw, the gallery images most like a picture
serve     show a web page to search with
remove    remove images by path, camera or time
optimise  build an approximate index over all images, or go back to exact search
info      say what an index holds

Figures, filters, several folders and machines: docs/search.md.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from methods import ADD_KEYS
from tabulate import tabulate

from gallery_search import Filter, GalleryIndex, Hit, Item, Writer, search_shards
from gallery_search.approximation import EXACT_UP_TO, KINDS, kind_for
from gallery_search.metadata import item_from_name, parse_time, read_table
from gallery_search.web import server
from gallery_search.web.search import MOST_HITS, GallerySearch
from occluded_reid.data.images import READ_ERRORS, read_errors_named, read_rgb
from occluded_reid.deploy.bulk import load_batches, log_unreadable
from occluded_reid.deploy.embedder import Embedder, load, read_bgr
from occluded_reid.deploy.feature_file import ImageList, list_images
from occluded_reid.evaluation.distances import spans
from occluded_reid.modeling.outputs import Embedding
from occluded_reid.utils.cli import positive_int, run_command
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import make_folder, whole_file, write_json
from occluded_reid.utils.logs import setup_logging
from occluded_reid.visualization.sheet import BLUE, GREY, ORANGE, TILE, Section, Tile, sheet

logger = logging.getLogger("occluded_reid.search")

COLUMNS = 11  # of a figure: the query and ten hits
TIMED = 30  # queries


def build(args: argparse.Namespace) -> None:
    """Make the index, or go on with it; then approximate it if it has become large."""
    embedder = embedder_of(args, args.weights)
    gallery = os.path.abspath(args.gallery)
    images = list_images(args.gallery)
    folder = Path(args.index)
    if not folder.exists() or not any(folder.iterdir()):
        GalleryIndex.create(
            folder,
            metric=embedder.metric,
            dim=embedder.dim,
            num_parts=embedder.num_parts,
            fingerprint=embedder.fingerprint,
            weights=os.path.abspath(args.weights),
            gallery=gallery,
        )
    index = GalleryIndex(folder, embedder.fingerprint)
    if index.facts().gallery != gallery:
        raise UserError(
            f"{folder} is an index of {index.facts().gallery}, not of {gallery}; choose another "
            "--index, or, where the folder was moved, type 'add --gallery'"
        )
    with index.writer() as writer:
        add_images(index, writer, embedder, images, args)
        if stale(index, args.kind):
            writer.optimise(args.kind)
    show(index)


def add(args: argparse.Namespace) -> None:
    """Add what is new below the gallery's folder."""
    index = GalleryIndex(args.index)
    facts = index.facts()
    images = list_images(args.gallery or facts.gallery)
    embedder = embedder_of(args, args.weights or facts.weights)
    index = GalleryIndex(args.index, embedder.fingerprint)
    with index.writer() as writer:
        add_images(index, writer, embedder, images, args)
    show(index)


def add_images(
    index: GalleryIndex,
    writer: Writer,
    embedder: Embedder,
    images: ImageList,
    args: argparse.Namespace,
) -> None:
    """Add the images that the index does not have, a batch at a time."""
    table = read_table(args.metadata) if args.metadata else {}
    known = index.ids(images.paths.tolist())
    new = ImageList(images.folder, np.array([p for p in images.paths if p not in known], str))
    logger.info(f"{len(known)} of {len(images.paths)} images are in {index.folder} already")
    places = [range(*part.indices(part.stop)) for part in spans(len(new.paths), args.batch_size)]
    unreadable = []
    for batch in load_batches(new, places, embedder, workers=args.workers, description="Adding"):
        unreadable += batch.unreadable
        if batch.images is not None:
            embedding = embedder.embed_batch(batch.images)
            paths = [str(new.paths[index]) for index in batch.indices]
            items = [table.get(path) or item_from_name(path) for path in paths]
            writer.add(items, embedding.features, embedding.visibility)
    log_unreadable(new, unreadable, "they are not in the index")
    if nowhere := len(table.keys() - set(images.paths.tolist())):
        logger.warning(f"{nowhere} lines of {args.metadata} name no image below {images.folder}")
    if len(unreadable) == len(images.paths):
        raise UserError(f"none of the images below {images.folder} can be read")


def stale(index: GalleryIndex, kind: str) -> bool:
    """Whether the approximation is not of this kind, or leaves much to exact search."""
    facts = index.facts()
    wanted = kind_for(len(index)) if kind == "auto" else kind
    present = facts.approximation
    if wanted == "exact" or present is None:
        return wanted != (present.kind if present else "exact")
    return present.kind != wanted or facts.rows - present.rows > EXACT_UP_TO


def remove(args: argparse.Namespace) -> None:
    """Remove images; where more than a quarter of the vectors are removed ones, compact."""
    index = GalleryIndex(args.index)
    filter = filter_of(args)
    if bool(args.paths) == (filter != Filter()):
        raise UserError("name either paths, or --camera, --since, --until: what is to be removed?")
    with index.writer() as writer:
        found = index.ids(args.paths)
        if missing := [path for path in args.paths if path not in found]:
            raise UserError(
                f"{len(missing)} paths are not in {args.index}, the first is {missing[0]}; name "
                "them as 'query' prints them. Nothing was removed"
            )
        ids = list(found.values()) if args.paths else index.select(filter).tolist()
        print(f"{writer.remove(ids)} images removed")
        facts = index.facts()
        if 4 * len(index) < 3 * facts.rows:
            writer.compact()
            if facts.approximation and stale(index, facts.approximation.kind):
                writer.optimise()
    show(index)


def optimise(args: argparse.Namespace) -> None:
    """Build the approximation anew."""
    index = GalleryIndex(args.index)
    with index.writer() as writer:
        writer.optimise(args.kind)
    show(index)


def info(args: argparse.Namespace) -> None:
    """Print what the index holds, and how long a search takes."""
    index = GalleryIndex(args.index)
    show(index)
    if args.time:
        ways = {"search": False, "search --exact": True} if index.facts().approximation else {}
        for name, exact in (ways or {"search": True}).items():
            found = np.percentile(timings(index, exact=exact), [50, 90])
            print(f"{name}: {found[0]:.1f} ms for a query, 90 % below {found[1]:.1f} ms")


def timings(index: GalleryIndex, *, exact: bool) -> list[float]:
    """Ask one query after the other, drawn at random; return the milliseconds of each."""
    queries = np.random.default_rng(0).normal(size=(1 + TIMED, 1, index.facts().dim))
    found = []
    for query in queries:
        start = time.perf_counter()
        index.search(query, exact=exact)
        found.append(1000 * (time.perf_counter() - start))
    return found[1:]  # the first one reads the files


def show(index: GalleryIndex) -> None:
    """Print what the index holds."""
    facts, items = index.facts(), len(index)
    size = sum(path.stat().st_size for path in index.folder.iterdir())
    print(f"{index.folder}: {items} images, {size / max(1, items):.0f} bytes each")
    print(f"metric {facts.metric}, {facts.dim} numbers, model {facts.fingerprint[:16]}")
    if (found := facts.approximation) is None:
        print("search: exact")
        return
    print(
        f"search: {found.kind}, recall@10 {found.recall:.3f} ({found.queries} queries), "
        f"{facts.rows - found.rows} images later than it are searched exactly"
    )


def query(args: argparse.Namespace) -> None:
    """Print and draw the nearest gallery images."""
    indexes, embedder = opened(args)
    pictures = []
    for path in args.image:
        with read_errors_named(f"the image {path}", "choose another one"):
            pictures.append(read_bgr(path))
    found = embedder.embed(pictures)
    lists = search_shards(indexes, found.features, args.top, filter_of(args), exact=args.exact)
    for path, hits in zip(args.image, lists, strict=True):
        rows = [{"rank": rank, **described(hit)} for rank, hit in enumerate(hits, start=1)]
        print(f"{path}:\n{tabulate(rows, headers='keys', floatfmt='.4f') or 'no image found'}")
    if args.json:
        content = {
            p: [described(h) for h in hits] for p, hits in zip(args.image, lists, strict=True)
        }
        write_json(args.json, content)
    if args.figure:
        make_folder(Path(args.figure).parent)
        picture = sheet(ranked_lists(args.image, found, lists, stripes=embedder.stripes))
        with whole_file(args.figure) as stream:
            picture.save(stream, format="PNG")
        print(args.figure)


def serve(args: argparse.Namespace) -> None:
    """Show a web page to search with, until Ctrl-C."""
    server.check_installed()
    server.serve(GallerySearch(*opened(args)), args.host, args.port, args.top)


def opened(args: argparse.Namespace) -> tuple[list[GalleryIndex], Embedder]:
    """The indexes that are asked as one, and the model that they were built with."""
    first = GalleryIndex(args.index[0])
    embedder = embedder_of(args, args.weights or first.facts().weights)
    return [GalleryIndex(each, embedder.fingerprint, args.gallery) for each in args.index], embedder


def described(hit: Hit) -> dict[str, Any]:
    """A hit as a line of the table."""
    seen = [round(value, 2) for value in hit.visibility.tolist()]
    return {"similarity": hit.similarity, **asdict(hit.item), "visibility": seen}


def ranked_lists(
    paths: list[str], found: Embedding, lists: list[list[Hit]], *, stripes: bool
) -> list[Section]:
    """A row for each query: the picture, then its hits with similarity and visibility."""
    sections = []
    for path, seen, hits in zip(paths, found.visibility, lists, strict=True):
        own = item_from_name(path)
        tiles = [Tile(pixels(path), ["query"], GREY, seen.tolist() or None, stripes=stripes)]
        for rank, hit in enumerate(hits, start=1):
            captions = [f"{rank}: {hit.similarity:.3f}", about(hit.item)]
            seen_of_hit = hit.visibility.tolist() or None
            frame = colour(own, hit)
            tiles.append(Tile(pixels(hit.image), captions, frame, seen_of_hit, stripes=stripes))
        legend = []
        if own.identity is not None:
            legend = [("same identity", BLUE), ("another identity", ORANGE), ("unknown", GREY)]
        sections.append(Section(os.path.basename(path), tiles, COLUMNS, legend))
    return sections


def about(item: Item) -> str:
    """What is known of an item, in few letters."""
    known = (("id", item.identity), ("cam", item.camera))
    return "  ".join(f"{name} {value}" for name, value in known if value is not None)


def colour(own: Item, hit: Hit) -> tuple[int, int, int]:
    """The colour of a hit's frame."""
    if own.identity is None or hit.item.identity is None:
        return GREY
    return BLUE if hit.item.identity == own.identity else ORANGE


def pixels(path: str | Path) -> np.ndarray:
    """The picture, or a white one where it is not there any more."""
    try:
        return np.asarray(read_rgb(path))
    except READ_ERRORS as error:
        logger.warning(f"Cannot be drawn: {path} ({error})")
        return np.full((TILE[1], TILE[0], 3), 255, np.uint8)


def filter_of(args: argparse.Namespace) -> Filter:
    """The filter that the command line names."""
    bounds = [None if text is None else parse_time(text) for text in (args.since, args.until)]
    return Filter(tuple(args.camera), *bounds)


def embedder_of(args: argparse.Namespace, weights: str) -> Embedder:
    """Load the model."""
    return load(
        weights,
        args.device,
        config=args.config_file,
        batch_size=getattr(args, "batch_size", 1),
        bf16=args.bf16,
        trust_checkpoint=args.trust_checkpoint,
        add_keys=ADD_KEYS,
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", required=True)
    for work in (build, add, query, serve, remove, optimise, info):
        options = commands.add_parser(work.__name__, description=work.__doc__)
        options.set_defaults(work=work)
        options.add_argument("--debug", action="store_true", help="show an error's traceback")
        several = {"action": "append"} if work in (query, serve) else {}
        options.add_argument("--index", required=True, metavar="DIR", **several)
        if work in (build, add):
            reading_options(options)
        if work in (build, add, query, serve):
            model_options(options, needed=work is build)
        if work in (query, remove):
            filter_options(options)
        if work in (build, optimise):
            options.add_argument("--kind", default="auto", choices=("auto", *KINDS))
        if work is query:
            query_options(options)
        if work is serve:
            serve_options(options)
        if work is info:
            options.add_argument("--time", action="store_true", help="time 30 searches")
        if work is remove:
            options.add_argument("paths", nargs="*", metavar="PATH", help="as 'query' prints them")
    return top


def reading_options(options: argparse.ArgumentParser) -> None:
    """How the gallery is read."""
    options.add_argument("--metadata", metavar="F.csv", help="columns path,camera,time,identity")
    options.add_argument("--batch-size", type=positive_int, default=64, metavar="N", help="64")
    workers = min(4, os.cpu_count() or 1)
    options.add_argument("--workers", type=int, default=workers, metavar="N", help=f"{workers}")


def model_options(options: argparse.ArgumentParser, *, needed: bool) -> None:
    """Model and gallery, which an index remembers."""
    remembered = "" if needed else " (default: as the index remembers)"
    options.add_argument(
        "--weights", required=needed, metavar="W", help=f"weights, or a run's folder{remembered}"
    )
    options.add_argument(
        "--gallery", required=needed, default="", metavar="DIR", help=f"images{remembered}"
    )
    options.add_argument("--config-file", default="", metavar="FILE", help="of the weights")
    options.add_argument("--device", metavar="cpu|cuda", help="default: as configured")
    options.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    options.add_argument("--trust-checkpoint", action="store_true", help="it can run code")


def filter_options(options: argparse.ArgumentParser) -> None:
    """Which images."""
    options.add_argument("--camera", action="append", default=[], metavar="NAME", help="or several")
    options.add_argument("--since", metavar="TIME", help="a number, or 2024-05-31T16:20:00")
    options.add_argument("--until", metavar="TIME", help="inclusive")


def query_options(options: argparse.ArgumentParser) -> None:
    """What is asked, and where the answer goes."""
    options.add_argument("--image", action="append", required=True, metavar="IMG", help="a crop")
    options.add_argument("--top", type=positive_int, default=10, metavar="N", help="hits (10)")
    options.add_argument("--exact", action="store_true", help="look at every image")
    options.add_argument("--figure", metavar="F.png", help="draw the ranked list")
    options.add_argument("--json", metavar="F.json", help="write the hits")


def serve_options(options: argparse.ArgumentParser) -> None:
    """Where the page is, and what it shows."""
    options.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    options.add_argument("--port", type=int, default=7860, help="7860; 0 for one that is free")
    hits = range(1, MOST_HITS + 1)
    options.add_argument(
        "--top", type=int, default=20, choices=hits, metavar="N", help="pictures at first (20)"
    )


def run(args: argparse.Namespace) -> None:
    """Do what was asked."""
    setup_logging()
    args.work(args)


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    args = parser().parse_args(words)
    return run_command(lambda: run(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(command())
