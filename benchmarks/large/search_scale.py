#!/usr/bin/env python
"""Measure latency, recall and size of a gallery index by kind and size.

Random vectors are searched exactly and by each approximation in the same run. Times are processor
time of one thread: medians of 20 queries for the 10 nearest.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import faiss
import numpy as np
import torch
from harness.machine import build_parser, write_results
from tabulate import tabulate

from gallery_search import Item, create_store, open_store
from gallery_search.store import KINDS
from occluded_reid.utils.cli import run_command
from occluded_reid.utils.errors import UserError

PARTS = 4
RANK = 64  # degrees of freedom of the vectors
IMAGES = 20  # per identity
SPREAD = 0.6  # of an identity's images; identities have a spread of 1
BLOCK = 10_000  # vectors generated and added at once
QUERIES, BATCH, TOP = 20, 63, 10


def run(args: argparse.Namespace) -> None:
    """Measure all sizes and kinds, print a table, and write the results."""
    if min(args.items) < 1000 or args.dim < 8:
        raise UserError("--items must be at least 1000, --dim at least 8")
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for items in args.items:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            path = Path(folder) / "index"
            address = f"milvus:///{path}.db" if args.store == "milvus" else str(path)
            for row in measure(address, Path(folder), items, args.dim, args.kinds):
                print(f"{items} x {args.dim} {row['kind']}: done", file=sys.stderr, flush=True)
                rows.append(row)
                write_results(args.json, {"rows": rows})
    print(tabulate(rows, "keys", "pipe", floatfmt=".4g"))


def measure(
    address: str, folder: Path, items: int, dim: int, kinds: list[str]
) -> Iterator[dict[str, Any]]:
    """Build one gallery below ``folder`` and yield a row per kind."""
    vectors = RandomVectors(items, dim)
    adding = fill_index(address, items, dim, vectors)
    index = open_store(address)
    queries = vectors.sample_queries(QUERIES + BATCH)
    truth = index.search(queries[:QUERIES], TOP, exact=True)
    exact_size = measure_size(folder)
    for kind in kinds:
        with index.writer() as writer:
            building, _ = measure_time(partial(writer.optimize, kind))
        index.search(queries[:1], TOP)  # opens it
        works = [partial(index.search, query[None], TOP) for query in queries[:QUERIES]]
        answers = [measure_time(work) for work in works]
        batch, _ = measure_time(partial(index.search, queries[QUERIES:], TOP))
        recalls = [
            len({hit.id for hit in hits} & {hit.id for hit in expected}) / TOP
            for (_, (hits,)), expected in zip(answers, truth, strict=True)
        ]
        is_exact, size = kind == "exact", measure_size(folder)
        yield {
            "store": "milvus" if address.startswith("milvus:") else "folder",
            "items": items,
            "dim": dim,
            "kind": kind,
            "ms_one": 1e3 * statistics.median(seconds for seconds, _ in answers),
            "ms_in_batch": 1e3 * batch / BATCH,
            "recall_built": getattr(index.info(), "recall", None),
            "recall_queries": statistics.mean(recalls),
            "build_s": adding if is_exact else building,
            "bytes_per_item": (size if is_exact else size - exact_size) / items,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def measure_size(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def fill_index(address: str | Path, items: int, dim: int, vectors: RandomVectors) -> float:
    """Create a gallery of random vectors; return the seconds spent adding them."""
    index = create_store(address, metric="cosine", dim=dim, num_parts=PARTS, fingerprint="random")
    adding = 0.0
    with index.writer() as writer:
        for start in range(0, items, BLOCK):
            features = vectors.sample(np.arange(start, min(start + BLOCK, items)))
            names = [Item(f"{start + n}.jpg", str(n % 8), float(n)) for n in range(len(features))]
            visibility = np.ones((len(features), PARTS))
            adding += measure_time(partial(writer.add, names, features, visibility))[0]
    return adding


class RandomVectors:
    """Sample vectors of ``dim`` dimensions and rank ``RANK``, ``IMAGES`` per identity."""

    def __init__(self, items: int, dim: int):
        self._rng = np.random.default_rng(0)
        rank = min(RANK, dim)
        self._basis = self._rng.standard_normal((rank, dim), np.float32)
        self._identities = self._rng.standard_normal((max(1, items // IMAGES), rank), np.float32)

    def sample_queries(self, count: int) -> np.ndarray:
        """Return new images of the gallery's identities."""
        return self.sample(self._rng.integers(0, len(self._identities), count))

    def sample(self, numbers: np.ndarray) -> np.ndarray:
        """Return the vectors of these items."""
        centers = self._identities[numbers % len(self._identities)]
        noise = self._rng.standard_normal(centers.shape, np.float32)
        return (centers + SPREAD * noise) @ self._basis


def measure_time(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the processor seconds of ``work`` and its result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def command(words: list[str] | None = None) -> int:
    """Run the command with ``words`` (default: the process's); return the exit code."""
    parser = build_parser(__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--dim", type=int, default=3072)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--store", choices=("folder", "milvus"), default="folder")
    parser.add_argument("--folder", default=None, metavar="DIR", help="where the index is built")
    args = parser.parse_args(words)
    return run_command(lambda: run(args), debug=args.debug)


if __name__ == "__main__":
    sys.exit(command())
