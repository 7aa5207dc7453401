"""Approximate search on faiss: it proposes rows, which are then compared exactly.

The vectors stay in their own file; faiss keeps compressed copies. ``ivf`` and ``hnsw`` use one byte
per value, ``ivfpq`` at most 128 bytes per vector. Shapes: N rows, Q queries, D feature dimensions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np

from gallery_search.store import KINDS
from gallery_search.store.database import FolderInfo
from gallery_search.store.similarity import MIN_DEPTH, SPARE, compute_similarities
from gallery_search.store.vectors import BLOCK, Vectors, find_nearest, resolve_faiss_metric
from occluded_reid.evaluation.distances import split_range
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import hash_file
from occluded_reid.utils.progress import progress

EXACT_UP_TO, HNSW_UP_TO, IVF_UP_TO = 100_000, 1_000_000, 4_000_000  # images, for "auto"
MIN_ITEMS = 1_000  # fewer cannot train an approximation
CODES = 128  # bytes per vector of ivfpq, at most
PER_LIST = 39  # training vectors per list, the minimum that faiss recommends
SAMPLE = 2**28  # values in the training sample: 1 GiB
HITS, QUERIES, GOAL = 10, 200, 0.97  # a measurement of recall@10, and what it should reach
MIN_EFFORT, MAX_EFFORT = 8, 1024


def choose_kind(items: int) -> str:
    """Return the kind of search for a gallery of this size.

    >>> choose_kind(20_000), choose_kind(500_000)
    ('exact', 'hnsw')
    """
    limits = ((EXACT_UP_TO, "exact"), (HNSW_UP_TO, "hnsw"), (IVF_UP_TO, "ivf"))
    return next((kind for limit, kind in limits if items <= limit), "ivfpq")


def build_faiss_index(vectors: Vectors, info: FolderInfo, kind: str) -> Any:
    """Return a faiss index of prepared vectors (N, D); its ids are the rows."""
    rows, dim = info.rows, info.dim
    if kind not in KINDS[1:]:
        raise UserError(f"there is no kind {kind!r}; there are auto, {', '.join(KINDS)}")
    if rows < MIN_ITEMS:
        raise UserError(f"{rows} vectors are too few for {kind}: {MIN_ITEMS} are needed; use exact")
    size = min(rows, max(MIN_ITEMS, SAMPLE // dim))
    lists = max(1, min(int(4 * rows**0.5), size // PER_LIST))
    limit = min(CODES, max(1, dim // 4))
    codes = max(number for number in range(1, limit + 1) if dim % number == 0)
    # np: polysemous training takes minutes and is not used
    recipes = {"hnsw": "HNSW32_SQ8", "ivf": f"IVF{lists},SQ8", "ivfpq": f"IVF{lists},PQ{codes}np"}
    index = faiss.index_factory(dim, recipes[kind], resolve_faiss_metric(info.metric))
    if kind == "hnsw":
        index.hnsw.efConstruction = 100
    else:
        index.cp.min_points_per_centroid = 1
    if kind == "ivfpq":
        index.pq.cp.min_points_per_centroid = 1
    sample = np.random.default_rng(0).choice(rows, size, replace=False)
    index.train(vectors[np.sort(sample)])
    parts = list(split_range(rows, max(1, BLOCK // dim)))
    for part in progress(parts, total=len(parts), description=f"Building {kind}", unit="blocks"):
        index.add(vectors[part])
    return index


def load_faiss_index(path: Path, info: FolderInfo) -> Any:
    """Map a faiss index from disk after checking its sha256; FileNotFoundError: it is missing."""
    advice = "rebuild it with 'optimise'"
    if hash_file(path) != info.sha256:
        raise UserError(f"{path} is damaged: its checksum is wrong; use --exact, or {advice}")
    flags = faiss.IO_FLAG_MMAP
    if info.kind == "hnsw":  # IO_FLAG_MMAP maps inverted lists only
        flags = getattr(faiss, "IO_FLAG_MMAP_IFC", flags)
    try:
        index = faiss.read_index(str(path), flags)
    except RuntimeError as error:
        raise UserError(f"{path} is not a faiss index: {error}; {advice}") from error
    expected = faiss.IndexHNSW if info.kind == "hnsw" else faiss.IndexIVF
    if not isinstance(index, expected) or (index.ntotal, index.d) != (info.covered, info.dim):
        raise UserError(f"{path} belongs to another index; {advice}")
    return index


def propose_rows(
    index: Any, queries: np.ndarray, count: int, effort: int, selected: np.ndarray | None
) -> np.ndarray:
    """Return candidate rows of prepared queries (Q, D): (Q, count) int64, -1 where there are fewer.

    ``selected`` (n,) are the rows to search, None for all; :class:`FolderInfo` has the effort.
    """
    selector = None
    if selected is not None:
        mask = np.zeros(index.ntotal, bool)
        mask[selected] = True
        selector = faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
    if isinstance(index, faiss.IndexHNSW):
        parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=max(effort, count))
    else:
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=min(effort, index.nlist))
    return index.search(queries, count, params=parameters)[1]


def measure_recall(
    index: Any, vectors: Vectors, metric: str, valid: np.ndarray
) -> tuple[int, float]:
    """Double the effort until recall@10 against exact search reaches the goal, or the limit.

    Queries are vectors of the gallery; each is excluded from its own results. A hit counts if it is
    at least as similar as the true tenth, so duplicate images do not lower the recall. ``valid``
    are the rows that were not removed. Returns the effort, and its recall in [0, 1].
    """
    size = min(QUERIES, len(valid))
    rows = np.sort(np.random.default_rng(0).choice(valid, size, replace=False))
    queries = vectors[rows]

    def rank_others(candidates: np.ndarray) -> list[np.ndarray]:
        """Return the best similarities of each query's candidates, without its own row."""
        found = []
        for query, near, row in zip(queries, candidates, rows, strict=True):
            others = np.unique(near[(near >= 0) & (near != row)])
            found.append(-np.sort(-compute_similarities(query, vectors[others], metric))[:HITS])
        return found

    truth = rank_others(find_nearest(vectors, queries, HITS + 1 + SPARE, metric, valid))
    effort = MIN_EFFORT
    while True:
        proposed = rank_others(propose_rows(index, queries, MIN_DEPTH, effort, valid))
        pairs = zip(proposed, truth, strict=True)
        recall = float(np.mean([(found >= true[-1]).sum() / len(true) for found, true in pairs]))
        if recall >= GOAL or effort >= MAX_EFFORT:
            return effort, recall
        effort *= 2
