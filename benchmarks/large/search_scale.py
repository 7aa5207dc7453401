#!/usr/bin/env python
"""Latency, recall and size of a gallery index by its kind: the tables of docs/search.md.

Vectors are drawn, searched by brute force and by each approximation in the same run.
Times are processor time of one thread, medians of 20 queries, for the 10 nearest.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from harness.machine import build_parser, write_results
from tabulate import tabulate

from gallery_search import GalleryIndex, Item
from gallery_search.store import KINDS
from occluded_reid.utils.cli import run_command
from occluded_reid.utils.errors import UserError

PARTS = 4
FREEDOM = 64  # dimensions that the drawn vectors really have
IMAGES = 20  # of an identity
SPREAD = 0.6  # of an identity's images, where identities are 1 apart
ROWS = 10_000  # drawn and added at a time
QUERIES, BATCH, TOP = 20, 63, 10


def run(args: argparse.Namespace) -> None:
    """Measure all sizes and kinds, print a table, and write the numbers where asked for."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for items in args.items:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            for row in measured(Path(folder) / "index", items, args.dim, args.kinds):
                print(f"{items} x {args.dim} {row['kind']}: done", file=sys.stderr, flush=True)
                rows.append(row)
                if args.json:
                    write_results(Path(args.json), {"rows": rows})
    print(tabulate(rows, "keys", "pipe", floatfmt=".4g"))


def measured(folder: Path, items: int, dim: int, kinds: list[str]) -> Iterator[dict[str, Any]]:
    """Build one index and give a row for each kind."""
    drawn = Drawn(items, dim)
    adding = fill(folder, items, dim, drawn)
    index = GalleryIndex(folder)
    queries = drawn.queries(QUERIES + BATCH)
    truth = [ids(hits) for hits in index.search(queries[:QUERIES], TOP, exact=True)]
    plain = size_of(folder)
    for kind in kinds:
        with index.writer() as writer:
            building, _ = timed(partial(writer.optimize, kind))
        index.search(queries[:1], TOP)  # opens it
        answers = [timed(partial(index.search, query[None], TOP)) for query in queries[:QUERIES]]
        batch, _ = timed(partial(index.search, queries[QUERIES:], TOP))
        found = [ids(hits) for _, (hits,) in answers]
        shares = [len(own & other) / TOP for own, other in zip(truth, found, strict=True)]
        approximation = index.info().approximation
        yield {
            "items": items,
            "dim": dim,
            "kind": kind,
            "ms_one": 1e3 * statistics.median(seconds for seconds, _ in answers),
            "ms_in_batch": 1e3 * batch / BATCH,
            "recall_built": approximation.recall if approximation else 1.0,
            "recall_queries": statistics.mean(shares),
            "build_s": building if approximation else adding,
            "bytes_per_item": (size_of(folder) - (plain if approximation else 0)) / items,
        }


def fill(folder: Path, items: int, dim: int, drawn: Drawn) -> float:
    """Make an index of drawn vectors; return the seconds of adding them."""
    index = GalleryIndex.create(
        folder, metric="cosine", dim=dim, num_parts=PARTS, fingerprint="drawn"
    )
    adding = 0.0
    with index.writer() as writer:
        for start in range(0, items, ROWS):
            features = drawn.gallery(start, min(start + ROWS, items))
            names = [Item(f"{start + n}.jpg", str(n % 8), float(n)) for n in range(len(features))]
            seen = np.ones((len(features), PARTS))
            adding += timed(partial(writer.add, names, features, seen))[0]
    return adding


class Drawn:
    """Vectors with ``FREEDOM`` dimensions of freedom in ``dim``, ``IMAGES`` to an identity."""

    def __init__(self, items: int, dim: int):
        self._random = np.random.default_rng(0)
        freedom = min(FREEDOM, dim)
        self._basis = self._random.standard_normal((freedom, dim), np.float32)
        self._people = self._random.standard_normal((max(1, items // IMAGES), freedom), np.float32)

    def gallery(self, start: int, stop: int) -> np.ndarray:
        """Return the vectors of these items."""
        return self._near(np.arange(start, stop) % len(self._people))

    def queries(self, count: int) -> np.ndarray:
        """Return new images of identities of the gallery."""
        return self._near(self._random.integers(0, len(self._people), count))

    def _near(self, people: np.ndarray) -> np.ndarray:
        centres = self._people[people]
        noise = self._random.standard_normal(centres.shape, np.float32)
        return (centres + SPREAD * noise) @ self._basis


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the processor time of ``work`` in seconds, and its result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def ids(hits: list[Any]) -> set[int]:
    """The numbers of the items found."""
    return {hit.id for hit in hits}


def size_of(folder: Path) -> int:
    """Bytes of the files of an index."""
    return sum(path.stat().st_size for path in folder.iterdir())


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    parser = build_parser(__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--dim", type=int, default=3072)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--folder", default=None, metavar="DIR", help="where the index is built")
    args = parser.parse_args(words)
    if min(args.items) < 1000 or args.dim < 8:
        return run_command(lambda: refuse(args), debug=args.debug)
    return run_command(lambda: run(args), debug=args.debug)


def refuse(args: argparse.Namespace) -> None:
    """Say what cannot be measured."""
    raise UserError(
        f"--items {min(args.items)} --dim {args.dim}: at least 1000 items of 8 numbers are expected"
    )


if __name__ == "__main__":
    sys.exit(command())
