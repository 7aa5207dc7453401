"""The features of a test set, from the batches of all ranks to one table on rank 0.

Shapes: B images in a batch, N images in all, D feature dimensions, P parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from fastreid.utils import comm

from occluded_reid.modeling.outputs import Embedding
from occluded_reid.utils.errors import UserError

ROWS = 4096  # looked through at a time


class Collected(NamedTuple):
    """A test set after inference; the first ``queries`` of N images are the queries.

    Attributes:
        features: (N, D) float32.
        visibility: (N, P) in [0, 1]; P is 0 where the model does not tell.
        identities: (N,); likewise cameras and paths.
        queries: their number.
    """

    features: torch.Tensor
    visibility: np.ndarray
    identities: np.ndarray
    cameras: np.ndarray
    paths: np.ndarray
    queries: int


def batch_of(inputs: Mapping[str, Any], embedding: Embedding) -> dict[str, torch.Tensor]:
    """Return what is kept of a batch: tensors on the CPU, one row per image but for ``paths``."""
    return {
        "features": embedding.features.float().cpu(),
        "visibility": embedding.visibility.float().cpu(),
        "identities": inputs["targets"].cpu(),
        "cameras": inputs["camids"].cpu(),
        "index": inputs["index"].cpu(),
        "paths": _as_bytes(inputs["img_paths"]),
    }


def merged(batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return one batch made of several; of none where a rank has had no images."""
    if not batches:
        nobody = Embedding(torch.empty(0, 0), torch.empty(0, 0))
        none = torch.empty(0, dtype=torch.int64)
        batches = [
            batch_of({"targets": none, "camids": none, "index": none, "img_paths": []}, nobody)
        ]
    if len(batches) == 1:
        return batches[0]
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def collect(batch: dict[str, torch.Tensor], num_query: int) -> Collected | None:
    """Return what all ranks have seen, in the data set's order, on rank 0; None elsewhere.

    Args:
        batch: what this rank has seen; an image that several ranks have seen counts once.
        num_query: the first so many images of the data set are the queries.

    Raises:
        UserError: features that are not finite.
    """
    gathered = {key: rows_on_first_rank(rows) for key, rows in batch.items()}
    if not comm.is_main_process():
        return None
    paths = np.array(_as_texts(gathered.pop("paths")))
    index, order = np.unique(gathered["index"].numpy(), return_index=True)
    if not np.array_equal(order, np.arange(len(gathered["index"]))):
        gathered = {key: rows[order] for key, rows in gathered.items()}
        paths = paths[order]
    features = gathered["features"]
    broken = sum(int((~part.isfinite().all(dim=1)).sum()) for part in features.split(ROWS))
    if broken:
        raise UserError(f"the features of {broken} images are not finite: broken weights")
    return Collected(
        features,
        gathered["visibility"].numpy(),
        gathered["identities"].numpy(),
        gathered["cameras"].numpy(),
        paths,
        int(np.count_nonzero(index < num_query)),
    )


def rows_on_first_rank(rows: torch.Tensor) -> Any:
    """Return all ranks' rows, rank after rank, on rank 0; None elsewhere.

    They are received straight into their place: rank 0 never holds a second copy, nor a pickle.

    Args:
        rows: (n, ...) on the CPU; n may differ from rank to rank and be 0.
    """
    if comm.get_world_size() == 1:
        return rows
    group = comm._get_global_gloo_group()  # the ranks' own backend cannot send from the CPU
    shapes = comm.all_gather(tuple(rows.shape))
    if not comm.is_main_process():
        if len(rows):
            dist.send(rows.contiguous(), dst=0, group=group)
        return None
    columns = next((shape[1:] for shape in shapes if shape[0]), shapes[0][1:])
    found = rows.new_empty(sum(shape[0] for shape in shapes), *columns)
    start = 0
    for rank, (count, *_) in enumerate(shapes):
        place = found[start : start + count]
        if rank == 0 and count:
            place.copy_(rows)
        elif count:
            dist.recv(place, src=rank, group=group)
        start += count
    return found


def _as_bytes(paths: list[str]) -> torch.Tensor:
    text = "".join(f"{path}\0" for path in paths).encode("utf-8", "surrogateescape")
    return torch.tensor(bytearray(text), dtype=torch.uint8)


def _as_texts(text: torch.Tensor) -> list[str]:
    return bytes(text.numpy()).decode("utf-8", "surrogateescape").split("\0")[:-1]
