"""``gpu_search`` and ``gpu_search_one``: the 50 nearest images of a gallery on the GPU."""

from __future__ import annotations

from collections.abc import Callable

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from harness.comparison import Figure, make_figure, require_equal, time_alternately

from figures.search import TOP
from occluded_reid.evaluation.distances import FeatureDistances

NAMES = ("gpu_search", "gpu_search_one")


def measure(
    items: int = 100_000, channels: int = 3072, batch: int = 64, device: str = "cuda",
    rounds: int = 10,
) -> dict[str, Figure]:  # fmt: skip
    """Compare evaluation's distances and top-k with faiss on all CPU cores."""
    rng = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(items + batch, channels, generator=rng), dim=1)
    gallery, queries = features[:items], features[items:]
    flat = faiss.IndexFlatIP(channels)
    flat.add(gallery.numpy())
    on_device, top = gallery.to(device), min(TOP, items)

    def ours(number: int) -> Callable[[], list[torch.Tensor]]:
        def search() -> list[torch.Tensor]:
            distances = FeatureDistances(queries[:number], on_device, "dot", device)
            tile = distances.compute_tile(slice(0, number), slice(0, items))
            nearest = tile.topk(top, dim=1, largest=False)
            return [-nearest.values.cpu(), nearest.indices.cpu()]

        return search

    def reference(number: int) -> Callable[[], np.ndarray]:
        return lambda: flat.search(queries[:number].numpy(), top)[0]

    require_equal("similarities", ours(batch)()[0], reference(batch)(), atol=1e-5)
    return {
        name: make_figure(
            time_alternately(ours(number), reference(number), rounds=rounds, device=device),
            f"s, top {top} of {items} x {channels}, batch {number}, against faiss on the CPU",
        )
        for name, number in zip(NAMES, (batch, 1), strict=True)
    }
