"""Gather the features of a test set from the batches of all ranks into one table on rank 0.

Shapes: B images in a batch, N images in all, D dimensions of a row, P parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

import occluded_reid.compat  # noqa: F401

# isort: split
from fastreid.utils import comm

from occluded_reid.evaluation.duplicates import assign_images
from occluded_reid.modeling.outputs import Embedding, as_embedding
from occluded_reid.modeling.similarity import make_rows
from occluded_reid.utils.errors import UserError

CHUNK = 4096  # rows checked at a time

Batch = dict[str, Any]
"""One row per image: tensors on the CPU, and ``paths``, a list."""


class FeatureTable(NamedTuple):
    """The features of a test set, one row per image, queries first."""

    features: torch.Tensor  # (N, D) float32, of similarity.make_rows
    visibility: np.ndarray  # (N, P) in [0, 1]; P is 0 if the model predicts none
    identities: np.ndarray  # (N,), as are cameras and paths
    cameras: np.ndarray
    paths: np.ndarray
    images: torch.Tensor  # (N,) index of each row's image, see duplicates.assign_images
    queries: int  # number of queries

    @property
    def labels(self) -> list[np.ndarray]:
        """Identities of queries and gallery, then their cameras, as ``rank_queries`` takes them."""
        identities, cameras = (np.split(x, [self.queries]) for x in (self.identities, self.cameras))
        return [*identities, *cameras]


def select_rows(inputs: Mapping[str, Any], embedding: Embedding, metric: str) -> Batch:
    """Return what the evaluation by ``metric`` needs of a batch and its embedding, on the CPU.

    Without ``digest`` in the batch, all images differ.
    """
    return {
        "features": make_rows(embedding, metric).float().cpu(),
        "visibility": embedding.visibility.float().cpu(),
        "identities": inputs["targets"].cpu(),
        "cameras": inputs["camids"].cpu(),
        "index": inputs["index"].cpu(),
        "digest": inputs.get("digest", inputs["index"]).cpu(),
        "paths": list(inputs["img_paths"]),
    }


def merge_batches(batches: list[Batch]) -> Batch:
    """Return one batch; an empty one on a rank without images."""
    if not batches:
        empty = torch.empty(0, dtype=torch.int64)
        inputs = {"targets": empty, "camids": empty, "index": empty, "img_paths": []}
        return select_rows(inputs, as_embedding(torch.empty(0, 0)), "cosine")
    if len(batches) == 1:
        return batches[0]
    merged = {key: torch.cat([b[key] for b in batches]) for key in batches[0] if key != "paths"}
    return {**merged, "paths": [path for batch in batches for path in batch["paths"]]}


def gather_table(batch: Batch, num_query: int) -> FeatureTable | None:
    """Return the rows of all ranks in the data set's order on rank 0; None elsewhere.

    An image on several ranks counts once; the first ``num_query`` of the data set are queries.
    """
    rows = {key: gather_rows(values) for key, values in batch.items() if key != "paths"}
    all_paths = comm.gather(batch["paths"])
    if not comm.is_main_process():
        return None
    paths = np.array([path for of_rank in all_paths for path in of_rank])
    index, order = np.unique(rows["index"].numpy(), return_index=True)
    if not np.array_equal(order, np.arange(len(rows["index"]))):
        rows = {key: values[order] for key, values in rows.items()}
        paths = paths[order]
    features = rows["features"]
    bad = sum(int((~chunk.isfinite().all(dim=1)).sum()) for chunk in features.split(CHUNK))
    if bad:
        raise UserError(f"the features of {bad} images are not finite: broken weights")
    columns = {key: rows[key].numpy() for key in ("visibility", "identities", "cameras")}
    queries = int(np.count_nonzero(index < num_query))
    images = assign_images(rows["digest"].numpy(), queries)
    return FeatureTable(features, **columns, paths=paths, images=images, queries=queries)


def gather_rows(rows: torch.Tensor) -> Any:
    """Return all ranks' rows, rank after rank, on rank 0; None elsewhere.

    Rank 0 receives them in place: it holds neither a second copy nor a pickle. Rows are (n, ...) on
    the CPU; n may differ between ranks and may be 0.
    """
    if comm.get_world_size() == 1:
        return rows
    group = comm._get_global_gloo_group()  # NCCL cannot send from the CPU
    shapes = comm.all_gather(tuple(rows.shape))
    if not comm.is_main_process():
        if len(rows):
            dist.send(rows.contiguous(), dst=0, group=group)
        return None
    columns = next((shape[1:] for shape in shapes if shape[0]), shapes[0][1:])
    gathered = rows.new_empty(sum(shape[0] for shape in shapes), *columns)
    chunks = gathered.split([shape[0] for shape in shapes])
    if len(rows):
        chunks[0].copy_(rows)
    for rank, chunk in enumerate(chunks[1:], start=1):
        if len(chunk):
            dist.recv(chunk, src=rank, group=group)
    return gathered
