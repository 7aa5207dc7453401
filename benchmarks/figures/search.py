"""``search`` and ``search_one``: the 50 nearest gallery images, of a batch and of one query."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
from harness.comparison import Figure, make_figure, require_equal, time_alternately
from large.search_scale import RandomVectors, fill_index

from gallery_search import GalleryIndex

NAMES = ("search", "search_one")
TOP = 50


def measure(
    items: int = 100_000, channels: int = 3072, batch: int = 64, rounds: int = 5
) -> dict[str, Figure]:
    """Compare a whole search of an index on the disk with faiss's flat index in memory.

    Ours compares its candidates again and reads the metadata of each hit.
    """
    flat = faiss.IndexFlatIP(channels)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "index"
        vectors = RandomVectors(items, channels)
        fill_index(folder, items, channels, vectors)
        index = GalleryIndex(folder)
        for path in folder.glob("vectors-*.f32"):
            flat.add(np.fromfile(path, np.float32).reshape(items, channels))
        queries = vectors.sample_queries(batch)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)

        def ours(number: int) -> Callable[[], np.ndarray]:
            return lambda: np.array(
                [[hit.similarity for hit in hits] for hits in index.search(queries[:number], TOP)]
            )

        def reference(number: int) -> Callable[[], np.ndarray]:
            return lambda: flat.search(queries[:number], min(TOP, items))[0]

        require_equal("similarities", ours(batch)(), reference(batch)(), atol=1e-5)
        return {
            name: make_figure(
                time_alternately(ours(number), reference(number), rounds=rounds),
                f"s, top {TOP} of {items} x {channels}, batch {number}",
            )
            for name, number in zip(NAMES, (batch, 1), strict=True)
        }
