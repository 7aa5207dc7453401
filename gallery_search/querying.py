"""The commands that search: on the terminal, and in a web page."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from gallery_search import Filter, Hit, Store, open_store, search_indexes
from gallery_search.calibration import calibrate as find_thresholds
from gallery_search.calibration import read_thresholds
from gallery_search.store.metadata import (
    DATES_FROM,
    format_time,
    natural_key,
    parse_name,
    parse_time,
)
from occluded_reid.data.images import BrokenImage, read_rgb
from occluded_reid.deploy.embedder import Embedder, load
from occluded_reid.modeling.outputs import Embedding
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import atomic_write, make_folder, write_json
from occluded_reid.utils.terminal import show
from occluded_reid.visualization.sheet import BLUE, GRAY, ORANGE, TILE, Section, Tile, draw_sheet

logger = logging.getLogger(__name__)

COLUMNS = 11  # of a figure: the query and ten hits
MAX_CAMERAS = 30  # that a message names
PAGE = ("starlette", "uvicorn", "jinja2")


def query(args: argparse.Namespace) -> None:
    """Print, and draw, the gallery images most similar to each query."""
    indexes, embedder = open_indexes(args)
    embedding = embedder.embed(args.image)
    filter, tables = read_filter(args, indexes), {}
    lists = search_indexes(indexes, embedding, args.top, filter, exact=args.exact)
    for path, hits in zip(args.image, lists, strict=True):
        tables[path] = [describe_hit(hit) for hit in hits]
        rows = [
            {"rank": rank, **{key: show_value(key, value) for key, value in row.items()}}
            for rank, row in enumerate(tables[path], start=1)
        ]
        table = tabulate(rows, headers="keys", floatfmt=".4f")
        print(f"{show(path)}:\n{table or 'no image found'}")
    if args.json:
        write_json(args.json, tables)
    if args.figure:
        make_folder(Path(args.figure).parent)
        figure = draw_sheet(build_sections(args.image, embedding, lists, stripes=embedder.stripes))
        with atomic_write(args.figure) as stream:
            figure.save(stream, format="PNG")
        print(args.figure)


def serve(args: argparse.Namespace) -> None:
    """Serve a web page to search with, until Ctrl-C; index a folder of crops first."""
    if not all(map(importlib.util.find_spec, PAGE)):
        raise UserError(
            "the page needs Starlette, uvicorn and Jinja2; install the extra 'web': "
            "pip install '.[web]'"
        )
    if bool(args.folder) == bool(args.index):
        raise UserError("give either a folder of crops, or --index")
    from gallery_search.web import server
    from gallery_search.web.images import Decoder
    from gallery_search.web.search import GallerySearch

    decoder, embedder = Decoder(), None  # before the model is loaded
    with server.open_socket(args.host, args.port) as listening:
        if args.folder:
            from gallery_search.indexing import index_folder

            index, embedder = index_folder(args)
            args.index = [index]
        indexes, embedder = open_indexes(args, embedder)
        thresholds = None
        if args.thresholds:
            thresholds = read_thresholds(args.thresholds, embedder.fingerprint)
        search = GallerySearch(indexes, embedder, decoder, thresholds)
        server.serve(search, listening, args.host, args.top, open_browser=not args.no_browser)


def calibrate(args: argparse.Namespace) -> None:
    """Choose the similarities from which an answer is certain or possible; write them."""
    thresholds = find_thresholds(open_store(args.index))
    write_json(args.output, asdict(thresholds))
    print(
        f"{args.output}: certain from {thresholds.certain:.3f}, possible from "
        f"{thresholds.possible:.3f}; {thresholds.queries} images of {thresholds.identities} people"
    )


def load_model(args: argparse.Namespace, weights: str) -> Embedder:
    """Load the model that the options name."""
    return load(
        weights, args.device, config=args.config_file, batch_size=getattr(args, "batch_size", 1),
        bf16=args.bf16, trust_checkpoint=args.trust_checkpoint,
    )  # fmt: skip


def open_indexes(
    args: argparse.Namespace, embedder: Embedder | None = None
) -> tuple[list[Store], Embedder]:
    """Open the indexes to search as one, and the model that built them, unless it is given."""
    first = open_store(args.index[0])
    embedder = embedder or load_model(args, args.weights or first.info().weights)
    indexes = [open_store(each, embedder.fingerprint, args.gallery) for each in args.index]
    for index in indexes:
        if not os.path.isdir(gallery := args.gallery or index.info().gallery):
            logger.warning(f"{index.address}: its images are not in {gallery}; give --gallery")
    return indexes, embedder


def read_filter(args: argparse.Namespace, indexes: list[Store]) -> Filter:
    """Return the filter that the options describe, if some image may pass it."""
    bounds = [None if text is None else parse_time(text) for text in (args.since, args.until)]
    names = {name for index in indexes for name in index.cameras()}
    cameras = sorted(names, key=natural_key)
    if unknown := set(args.camera).difference(cameras):
        shown = ", ".join(cameras[:MAX_CAMERAS]) + ", ..." * (len(cameras) > MAX_CAMERAS)
        raise UserError(f"there is no camera {min(unknown)!r}; there are {show(shown) or 'none'}")
    times = [time for index in indexes for time in index.time_span() or ()]
    kinds = {bound >= DATES_FROM for bound in bounds if bound is not None}
    if kinds and times and kinds.isdisjoint(time >= DATES_FROM for time in times):
        raise UserError(
            f"no image has a time like {args.since or args.until}: they are "
            f"{format_time(min(times))} to {format_time(max(times))}, where numbers below "
            f"{DATES_FROM:.0f} are frames, others dates"
        )
    return Filter(tuple(args.camera), *bounds)


def describe_hit(hit: Hit) -> dict[str, Any]:
    """Return a hit as a row of the table."""
    visibility = [round(value, 2) for value in hit.visibility.tolist()]
    return {"similarity": hit.similarity, **asdict(hit.item), "visibility": visibility}


def show_value(name: str, value: Any) -> Any:
    """Return a value of a hit's row as the terminal shows it: times as dates, names escaped."""
    if name == "time" and value is not None:
        return format_time(value)
    return show(value) if isinstance(value, str) else value


def build_sections(
    paths: list[str], embedding: Embedding, lists: list[list[Hit]], *, stripes: bool
) -> list[Section]:
    """Return a section per query: the query image, then its hits."""
    sections = []
    for path, visibility, hits in zip(paths, embedding.visibility, lists, strict=True):
        own = parse_name(path).identity
        scores = visibility.tolist() or None
        tiles = [Tile(read_pixels(path), ["query"], GRAY, scores, stripes=stripes)]
        for rank, hit in enumerate(hits, start=1):
            values = (("id", hit.item.identity), ("cam", hit.item.camera))
            known = "  ".join(f"{name} {value}" for name, value in values if value is not None)
            captions = [f"{rank}: {hit.similarity:.3f}", known]
            color = GRAY
            if own is not None and hit.item.identity is not None:
                color = BLUE if hit.item.identity == own else ORANGE
            scores = hit.visibility.tolist() or None
            tiles.append(Tile(read_pixels(hit.image), captions, color, scores, stripes=stripes))
        legend = [("same identity", BLUE), ("different identity", ORANGE), ("unknown", GRAY)]
        name = os.path.basename(path)
        sections.append(Section(name, tiles, COLUMNS, [] if own is None else legend))
    return sections


def read_pixels(path: str | Path) -> np.ndarray:
    """Return the image, or a white one if the file cannot be read."""
    try:
        return np.asarray(read_rgb(path))
    except BrokenImage as error:
        logger.warning(f"Cannot draw {show(path)} ({error.reason})")
        return np.full((TILE[1], TILE[0], 3), 255, np.uint8)
