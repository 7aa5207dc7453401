"""Approximate search on faiss: it proposes rows, which are then compared exactly.

The vectors themselves stay in their own file; what faiss keeps is compressed. ``ivf`` and ``hnsw``
keep a byte for each number, ``ivfpq`` some 128 bytes for each vector.

Shapes: N rows, Q queries, D feature dimensions.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from gallery_search.exact import BLOCK, faiss_metric
from gallery_search.facts import Approximation
from gallery_search.vectors import Vectors
from occluded_reid.evaluation.distances import spans
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import whole_file
from occluded_reid.utils.progress import progress

KINDS = ("exact", "hnsw", "ivf", "ivfpq")
EXACT_UP_TO, HNSW_UP_TO, IVF_UP_TO = 100_000, 1_000_000, 4_000_000  # items, for "auto"
LEAST_ITEMS = 1_000  # fewer are not worth it, and cannot train it
LINKS, BREADTH = 32, 100  # of HNSW's graph: a node's neighbours, and how wide they are looked for
CODES = 128  # bytes that a vector of ivfpq may have
NUMBERS_PER_CODE = 4  # at least
PER_LIST = 39  # vectors of the sample for each list, the least that faiss asks for
SAMPLE = 2**28  # numbers that the training sample may have: 1 GiB


def kind_for(items: int) -> str:
    """The kind of search that suits a gallery of so many items."""
    bounds = ((EXACT_UP_TO, "exact"), (HNSW_UP_TO, "hnsw"), (IVF_UP_TO, "ivf"))
    return next((kind for bound, kind in bounds if items <= bound), "ivfpq")


def build(vectors: Vectors, dim: int, metric: str, kind: str, seed: int = 0) -> Any:
    """Return a faiss index of ``vectors``; its numbers are the rows.

    Args:
        vectors: (N, D), prepared.
        kind: ``hnsw``, ``ivf`` or ``ivfpq``.
        seed: which vectors it is trained on.

    Raises:
        UserError: too few vectors, or no such kind.
    """
    if kind not in KINDS[1:]:
        raise UserError(f"there is no kind {kind!r}; there are auto, {', '.join(KINDS)}")
    rows = len(vectors)
    if rows < LEAST_ITEMS:
        raise UserError(
            f"{rows} vectors are too few for {kind}: it takes {LEAST_ITEMS}; use the kind exact"
        )
    size = min(rows, max(LEAST_ITEMS, SAMPLE // dim))
    picked = np.random.default_rng(seed).choice(rows, size, replace=False)
    index = faiss.index_factory(dim, _recipe(kind, dim, rows, size), faiss_metric(metric))
    if kind == "hnsw":
        index.hnsw.efConstruction = BREADTH
    else:
        index.cp.min_points_per_centroid = 1
    if kind == "ivfpq":
        index.pq.cp.min_points_per_centroid = 1
    index.train(vectors[np.sort(picked)])
    parts = list(spans(rows, max(1, BLOCK // dim)))
    for part in progress(parts, total=len(parts), description=f"building {kind}", unit="blocks"):
        index.add(vectors[part])
    return index


def _recipe(kind: str, dim: int, rows: int, sample: int) -> str:
    """The name by which faiss knows a kind in the right size."""
    if kind == "hnsw":
        return f"HNSW{LINKS}_SQ8"
    lists = max(1, min(int(4 * rows**0.5), sample // PER_LIST))
    if kind == "ivf":
        return f"IVF{lists},SQ8"
    most = min(CODES, max(1, dim // NUMBERS_PER_CODE))
    codes = max(number for number in range(1, most + 1) if dim % number == 0)
    return f"IVF{lists},PQ{codes}np"  # without polysemous training: minutes for nothing here


def save(index: Any, folder: Path, serial: int) -> str:
    """Write a faiss index; return the sha256 of its file."""
    digest = hashlib.sha256()
    with whole_file(path_of(folder, serial)) as stream:

        def write(content: bytes) -> None:
            digest.update(content)
            stream.write(content)

        faiss.write_index(index, faiss.PyCallbackIOWriter(write))
    return digest.hexdigest()


def load(folder: Path, facts: Approximation, dim: int) -> Any:
    """Map a faiss index from the disk, once its checksum is right.

    Raises:
        FileNotFoundError: it was replaced meanwhile.
        UserError: the file is damaged.
    """
    path = path_of(folder, facts.serial)
    with path.open("rb") as stream:
        found = hashlib.sha256()
        while content := stream.read(2**20):
            found.update(content)
    if found.hexdigest() != facts.sha256:
        raise UserError(
            f"{path} is damaged: its checksum is another one; search with --exact, or build the "
            "approximation anew by 'optimise'"
        )
    flags = faiss.IO_FLAG_MMAP
    if facts.kind == "hnsw":  # the flag above maps inverted lists only
        flags = getattr(faiss, "IO_FLAG_MMAP_IFC", flags)
    try:
        index = faiss.read_index(str(path), flags)
    except RuntimeError as error:
        raise UserError(
            f"{path} is no faiss index: {error}; build it anew by 'optimise'"
        ) from error
    expected = faiss.IndexHNSW if facts.kind == "hnsw" else faiss.IndexIVF
    if not isinstance(index, expected) or (index.ntotal, index.d) != (facts.rows, dim):
        raise UserError(f"{path} is of another index; build it anew by 'optimise'")
    return index


def propose(
    index: Any, queries: np.ndarray, count: int, effort: int, selected: np.ndarray | None
) -> np.ndarray:
    """Return rows that may be the nearest: (Q, count) int64, -1 where less were found.

    Args:
        queries: (Q, D), prepared.
        effort: see :class:`Approximation`.
        selected: (n,) the rows to look at, ascending; None: all of them.
    """
    selector = None
    if selected is not None:
        mask = np.zeros(index.ntotal, bool)
        mask[selected] = True
        bits = np.packbits(mask, bitorder="little")
        selector = faiss.IDSelectorBitmap(bits)
    if isinstance(index, faiss.IndexHNSW):
        breadth = max(effort, count)
        parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=breadth)
    else:
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=min(effort, index.nlist))
    return index.search(queries, count, params=parameters)[1]


def path_of(folder: Path, serial: int) -> Path:
    """The file of an approximation."""
    return folder / f"approximation-{serial}.faiss"


def delete_others(folder: Path, serial: int) -> None:
    """Delete the files of other approximations; who has opened one goes on reading it."""
    for path in folder.glob("approximation-*.faiss"):
        if path != path_of(folder, serial):
            path.unlink(missing_ok=True)
