"""Features of many images as Parquet files, which any number of machines write into one folder.

File k holds images k * S to (k + 1) * S - 1 of the list. A finished file is kept, so an interrupted
job goes on when it is repeated, also with other machines.

Shapes: D dimensions of a row, P parts of a person, S images per file.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from occluded_reid.data.image_names import make_id, read_name
from occluded_reid.deploy.bulk import EmbeddedPart, embed_parts, log_unreadable, require_all
from occluded_reid.deploy.embedder import Embedder
from occluded_reid.deploy.feature_file import ImageList, UnreadableImage
from occluded_reid.utils.errors import UserError, explain_read_errors
from occluded_reid.utils.files import atomic_write, make_folder

logger = logging.getLogger(__name__)

KEY = b"occluded_reid"  # of a file's metadata
NAMES = ("id", "path", "camera", "time", "identity")


class ShardInfo(NamedTuple):
    """What all files of a job share."""

    images: str  # hash of the image list
    total: int  # images in it
    part_size: int  # S
    model: str  # fingerprint
    precision: str
    metric: str
    dim: int  # D
    num_parts: int  # P
    weights: str
    gallery: str  # folder of the images


class ShardWriter:
    """Write the parts of a job; a callable that Ray Data can run as an actor.

    Args:
        load: returns the model; called once, where the object is made.
        images: The list.
        output: Folder of the files.
        info: See :class:`ShardInfo`.
        workers: Processes that read images.
    """

    def __init__(
        self, load: Callable[[], Embedder], images: ImageList, output: str, info: ShardInfo,
        workers: int,
    ):  # fmt: skip
        self._embedder, self._images, self._info = load(), images, info
        self._output, self._workers = Path(output), workers
        if self._embedder.fingerprint != info.model:
            raise UserError(f"{info.weights} are other weights on this machine; copy them anew")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Write the files whose numbers ``batch["part"]`` holds; return the same."""
        self.write(batch["part"].tolist())
        return batch

    def write(self, parts: Sequence[int], *, show_progress: bool = False) -> None:
        """Write these files, each whole or not at all."""
        size, workers = self._info.part_size, self._workers
        for part in embed_parts(
            self._embedder, self._images, parts, size, workers, show_progress=show_progress
        ):
            write_shard(self._output / shard_name(part.number), part, self._images, self._info)


def extract_shards(
    load: Callable[[], Embedder], images: ImageList, output: str, *,
    weights: str, part_size: int = 2048, workers: int = 0, shard: tuple[int, int] = (1, 1),
    ray_address: str = "",
) -> None:  # fmt: skip
    """Write the features of ``images`` as Parquet files into the folder ``output``.

    Args:
        load: returns the model.
        images: The list; its folder has the same path on all machines.
        output: Folder that all machines see.
        weights: Name of the model, for who imports the files.
        part_size: Images per file.
        workers: Processes that read images.
        shard: I and N: every N-th file is this process's, from the I-th on.
        ray_address: Of a Ray cluster that does all of them; ``""`` for this process.

    Raises:
        IncompleteWork: all is written, but an image or folder cannot be opened.
        UserError: the folder holds features of another model, list or precision.
    """
    embedder = load()
    info = ShardInfo(
        images.sha256, len(images.paths), part_size, embedder.fingerprint, embedder.precision,
        embedder.metric, embedder.dim, embedder.num_parts, weights, os.path.abspath(images.folder),
    )  # fmt: skip
    folder = make_folder(output)
    numbers = range(-(-len(images.paths) // part_size))
    mine = [number for number in numbers if (number + 1 - shard[0]) % shard[1] == 0]
    present = [number for number in mine if (folder / shard_name(number)).exists()]
    for number in present:
        if read_info(folder / shard_name(number)) != info:
            raise UserError(
                f"{folder / shard_name(number)} is from another job: another model, list of "
                "images, precision or --part-size; choose another --output"
            )
    missing = sorted(set(mine).difference(present))
    logger.info(f"{len(missing)} of {len(mine)} files to write, {len(numbers)} in all")
    if missing and ray_address:
        _write_on_ray(ray_address, missing, (load, images, str(folder), info, workers))
    elif missing:
        ShardWriter(lambda: embedder, images, str(folder), info, workers).write(
            missing, show_progress=True
        )
    unreadable = []
    for number in mine:
        unreadable += _read_unreadable(folder / shard_name(number), number * part_size)
    print(f"{folder}: {len(mine)} of {len(numbers)} files are done")
    log_unreadable(images, unreadable, "they have no vector; to try them again, delete their files")
    require_all(images, unreadable)


def _write_on_ray(address: str, missing: Sequence[int], words: tuple[Any, ...]) -> None:
    """Let actors of a Ray cluster write the files, one per GPU, or per reader process of a CPU."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError("--ray needs Ray: pip install '.[ray]'") from error
    host, _, port = address.rpartition(":")
    if not ray.is_initialized():
        advice = (
            "start one: ray start --head"
            if address != "local"
            else "Ray gives its parts 15 s to start: try again when the machine is less busy"
        )
        with explain_read_errors(f"the cluster {address}", advice, (Exception,)):
            if port.isdigit() and "/" not in host:
                socket.create_connection((host, int(port)), 10).close()  # Ray tries for minutes
            ray.init(address, include_dashboard=False, log_to_driver=False)
    resources, cpus = ray.cluster_resources(), max(1, words[-1])
    gpus = int("GPU" in resources)
    actors = int(resources["GPU"] if gpus else resources.get("CPU", 1) // cpus)
    data = ray.data.from_items([{"part": n} for n in missing], override_num_blocks=len(missing))
    written = data.map_batches(
        ShardWriter, fn_constructor_args=words, batch_size=1, num_cpus=cpus, num_gpus=gpus,
        concurrency=max(1, min(actors, len(missing))),
    )  # fmt: skip
    try:
        for count, _ in enumerate(written.iter_rows(), start=1):
            logger.info(f"{count} of {len(missing)} files are written")
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        raise cause if isinstance(cause, UserError) else error from None


def shard_name(number: int) -> str:
    """Return the name of file k."""
    return f"part-{number:06d}.parquet"


def write_shard(path: Path, part: EmbeddedPart, images: ImageList, info: ShardInfo) -> None:
    """Write one file: a row per image, without a vector but with a reason if it is unreadable."""
    pa, pq = import_pyarrow()
    vectors = dict(
        zip(part.indices.tolist(), zip(part.rows, part.visibility, strict=True), strict=True)
    )
    reasons = dict(part.unreadable)
    rows = []
    for index in sorted({*vectors, *reasons}):
        name = str(images.paths[index])
        camera, time, identity = read_name(name)
        vector, visibility = vectors.get(index, (None, None))
        rows.append((make_id(name), name, camera, time, identity, vector, visibility,
                     reasons.get(index)))  # fmt: skip
    numbers = pa.list_(pa.float32())
    types = {
        "id": pa.int64(), "path": pa.string(), "camera": pa.string(), "time": pa.float64(),
        "identity": pa.string(), "vector": numbers, "visibility": numbers, "reason": pa.string(),
    }  # fmt: skip
    schema = pa.schema(list(types.items()), metadata={KEY: json.dumps(info._asdict())})
    columns = [
        pa.array(column, kind)
        for column, kind in zip(zip(*rows, strict=True), types.values(), strict=True)
    ]
    with atomic_write(path) as stream:
        pq.write_table(pa.Table.from_arrays(columns, schema=schema), stream,
                       write_page_checksum=True)  # fmt: skip


class ShardRows(NamedTuple):
    """Some images of a file."""

    table: dict[str, list[Any]]  # id, path, camera, time, identity, of those with a vector
    vectors: np.ndarray  # (n, D) float32
    visibility: np.ndarray  # (n, P)
    unreadable: int  # images without a vector


def read_info(path: Path) -> ShardInfo:
    """Return what a file says of its job."""
    with _open(path) as file:
        return ShardInfo(**json.loads(file.schema_arrow.metadata[KEY]))


def read_shard(path: Path, info: ShardInfo) -> Iterator[ShardRows]:
    """Yield the images of a file; damage, or another shape than the job's, is a UserError."""
    with _open(path) as file:
        for batch in file.iter_batches(batch_size=512):
            vectors = _to_array(batch.column("vector"), info.dim)
            seen = _to_array(batch.column("visibility"), info.num_parts)
            read = batch.filter(batch.column("vector").is_valid())
            table = {name: read.column(name).to_pylist() for name in NAMES}
            if table["id"] != [make_id(name) for name in table["path"]]:
                raise ValueError("an id is not that of its path")
            yield ShardRows(table, vectors, seen, len(batch) - len(read))


def _to_array(column: Any, width: int) -> np.ndarray:
    """Return the lists of a column, without nulls, as (n, width) float32."""
    lengths = {length for length in column.value_lengths().to_pylist() if length is not None}
    if lengths - {width}:
        raise ValueError(f"rows of {max(lengths)} numbers instead of {width}")
    return column.flatten().to_numpy().reshape(len(column) - column.null_count, width)


def _read_unreadable(path: Path, first: int) -> list[UnreadableImage]:
    with _open(path) as file:
        reasons = file.read(["reason"]).column("reason").to_pylist()
    return [UnreadableImage(first + n, why) for n, why in enumerate(reasons) if why is not None]


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    pa, pq = import_pyarrow()
    errors = (OSError, pa.ArrowException, AttributeError, KeyError, TypeError, ValueError)
    with (
        explain_read_errors(path, "delete it and repeat 'extract'", errors),
        pq.ParquetFile(path, page_checksum_verification=True) as file,
    ):
        yield file


def import_pyarrow() -> tuple[Any, Any]:
    """Return pyarrow and its module for Parquet."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise UserError("Parquet needs pyarrow: pip install '.[parquet]'") from error
    return pyarrow, pyarrow.parquet
