"""The 50 nearest gallery images, of a batch of queries and of one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from harness.comparison import Figure, make_figure, require_equal, time_alternately
from large.search_scale import RandomVectors, fill_index

from gallery_search import GalleryIndex
from occluded_reid.evaluation.distances import FeatureDistances

TOP = 50


def measure_search(
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

        def ours(queries: np.ndarray) -> np.ndarray:
            hits = index.search(queries, TOP)
            return np.array([[hit.similarity for hit in each] for each in hits])

        figures = compare("search", ours, flat, queries, rounds)
    return figures


def measure_gpu_search(
    items: int = 100_000, channels: int = 3072, batch: int = 64, device: str = "cuda",
    rounds: int = 10,
) -> dict[str, Figure]:  # fmt: skip
    """Compare evaluation's distances and top-k on the GPU with faiss on all CPU cores."""
    rng = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(items + batch, channels, generator=rng), dim=1)
    gallery, queries = features.split((items, batch))
    flat = faiss.IndexFlatIP(channels)
    flat.add(gallery.numpy())
    on_device, top = gallery.to(device), min(TOP, items)

    def ours(queries: np.ndarray) -> torch.Tensor:
        distances = FeatureDistances(torch.from_numpy(queries), on_device, "dot", device)
        tile = distances.compute_tile(slice(0, len(queries)), slice(0, items))
        nearest = tile.topk(top, dim=1, largest=False)
        nearest.indices.cpu()  # a user needs them as well
        return -nearest.values.cpu()

    return compare(
        "gpu_search", ours, flat, queries.numpy(), rounds, device, ", against faiss on the CPU"
    )


def compare(
    name: str, ours: Callable[[np.ndarray], Any], flat: Any, queries: np.ndarray, rounds: int,
    device: str = "cpu", against: str = "",
) -> dict[str, Figure]:  # fmt: skip
    """Compare the similarities of all queries, then the times of all and of one."""
    top = min(TOP, flat.ntotal)
    require_equal("similarities", ours(queries), flat.search(queries, top)[0], atol=1e-5)
    figures = {}
    for suffix, some in (("", queries), ("_one", queries[:1])):
        works = partial(ours, some), partial(flat.search, some, top)
        unit = f"s, top {TOP} of {flat.ntotal} x {flat.d}, batch {len(some)}{against}"
        times = time_alternately(*works, rounds=rounds, device=device)
        figures[f"{name}{suffix}"] = make_figure(times, unit)
    return figures
