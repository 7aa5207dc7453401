"""Connect to Milvus, create a gallery's collections, and change them."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gallery_search.store import KINDS
from gallery_search.store.metadata import Hit, IndexInfo, Item
from gallery_search.store.similarity import prepare_batch
from occluded_reid.data.image_names import make_id
from occluded_reid.evaluation.distances import split_range
from occluded_reid.modeling.outputs import Embedding
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import hold_lock
from occluded_reid.utils.terminal import show

if TYPE_CHECKING:
    from gallery_search.store.milvus import MilvusStore

METRICS = {"cosine": "COSINE", "euclidean": "L2"}  # other metrics are inner products
INDEXES = dict(zip(KINDS, ("FLAT", "HNSW", "IVF_SQ8", "IVF_PQ"), strict=True))
EXACT_UP_TO = 100_000  # images, for "auto"
MAX_TEXT = 1024  # bytes of a name
MAX_BYTES = 2**24  # of vectors sent at once


class MilvusWriter:
    """Add and remove images; see :class:`gallery_search.Writer`.

    A batch of at most ``MAX_BYTES`` is added whole or not at all. Milvus Lite has it on the disk
    once the writer is closed; a process that is killed before loses nothing, a power cut may.
    """

    def __init__(self, store: MilvusStore, client: Any, name: str):
        self._store, self._client, self._name = store, client, name

    def add(
        self, items: Sequence[Item], features: np.ndarray | Embedding,
        visibility: np.ndarray | None = None,
        *, versions: Sequence[str | None] = (), overwrite: bool = False,
    ) -> list[int]:  # fmt: skip
        """Add n images and return their ids."""
        info = self._store.info()
        values, visibility = prepare_batch(info, items, features, visibility)
        for item in items:
            for text in (item.path, item.camera, item.identity):
                if len((text or "").encode()) > MAX_TEXT:
                    raise UserError(f"{show(item.path)}: a name is longer than {MAX_TEXT} bytes")
        paths = [item.path for item in items]
        if not overwrite and (known := self._store.versions_of(paths)):
            raise UserError(
                f"{show(min(known))} is in the index {self._store.address} already; remove it first"
            )
        columns = zip(items, values, visibility, versions or [None] * len(items), strict=True)
        self._write(info, [make_row(item, *rest) for item, *rest in columns])
        with explain(self._store.address):
            if gone := self._store.withdrawn().intersection(paths):
                self._client.delete(f"{self._name}_withdrawn", ids=sorted(gone))
        return [make_id(path) for path in paths]

    def update(self, items: Iterable[Item]) -> int:
        """Give the images of these paths another camera, time and identity; count the changes."""
        new, info, count = {make_id(item.path): item for item in items}, self._store.info(), 0
        for hits in self._read(new):
            hits = [hit for hit in hits if hit.item != new[hit.id]]
            versions = self._store.versions_of([hit.item.path for hit in hits])
            rows = [
                make_row(new[hit.id], hit.features, hit.visibility, versions[hit.item.path])
                for hit in hits
            ]
            self._write(info, rows)
            count += len(rows)
        return count

    def remove(self, ids: Iterable[int], *, remember: bool = True) -> int:
        """Remove images; return how many there were."""
        withdrawn, count = f"{self._name}_withdrawn", 0
        for hits in self._read(ids):
            rows = [{"path": hit.item.path, "unused": [0.0, 0.0]} for hit in hits]
            with explain(self._store.address):
                if remember:  # first: a removal is never forgotten
                    self._client.upsert(withdrawn, rows)
                self._client.delete(self._name, ids=[hit.id for hit in hits])
            count += len(hits)
        return count

    def _read(self, ids: Iterable[int]) -> Iterator[list[Hit]]:
        """Yield the images with these ids in parts, as memory may not hold all their vectors."""
        numbers = list(map(int, ids))
        for part in split_range(len(numbers), 1000):
            if hits := self._store.look_up(numbers[part]):
                yield hits

    def compact(self, share: float = 0.0) -> None:
        """Do nothing: Milvus frees the space of removed images by itself."""

    def optimize(self, kind: str = "auto") -> None:
        """Build another index: ``exact`` (FLAT), ``hnsw``, ``ivf`` (IVF_SQ8), ``ivfpq``."""
        kind = choose_kind(kind, len(self._store))
        with explain(self._store.address):
            self._client.release_collection(self._name)
            self._client.drop_index(self._name, "vector")
            create_index(self._client, self._name, kind, self._store.info())
            self._client.load_collection(self._name)

    def _write(self, info: IndexInfo, rows: list[dict[str, Any]]) -> None:
        for part in split_range(len(rows), max(1, MAX_BYTES // (4 * info.dim))):
            with explain(self._store.address):
                self._client.upsert(self._name, rows[part])


def make_row(
    item: Item, vector: np.ndarray, visibility: np.ndarray, version: str | None
) -> dict[str, Any]:
    """Return an image as a row of the collection; the partition key cannot be null."""
    return {
        "id": make_id(item.path), "path": item.path, "camera": item.camera or "",
        "time": item.time, "identity": item.identity, "version": version,
        "visibility": visibility.tolist(), "vector": vector,
    }  # fmt: skip


def choose_kind(kind: str, items: int) -> str:
    """Return a key of ``INDEXES``; ``auto`` goes by the number of images."""
    if kind == "auto":
        return "exact" if items <= EXACT_UP_TO else "hnsw"
    if kind not in INDEXES:
        raise UserError(f"there is no kind {kind!r}; there are auto, {', '.join(INDEXES)}")
    return kind


def parse_address(address: str) -> tuple[str, str]:
    """Return what pymilvus connects to, and the collection's name.

    >>> parse_address("milvus://localhost:19530/street")
    ('http://localhost:19530', 'street')
    >>> parse_address("milvus:///FILE.db"), parse_address("milvus:///srv/FILE.db")
    (('FILE.db', 'gallery'), ('/srv/FILE.db', 'gallery'))
    """
    host, _, rest = address.removeprefix("milvus://").partition("/")
    if host and re.fullmatch(r"[^/]+:\d+", host) and re.fullmatch(r"[A-Za-z_]\w{0,200}", rest):
        return f"http://{host}", rest
    if not host and rest.endswith(".db"):
        folders, name = os.path.split(rest)
        return os.path.join(f"/{folders.lstrip('/')}", name) if folders else name, "gallery"
    raise UserError(
        f"{address} is no gallery; expected milvus://HOST:PORT/NAME, where NAME has letters, "
        "digits and _ only, or milvus:///FILE.db (milvus:///srv/FILE.db is /srv/FILE.db)"
    )


def connect(address: str) -> Any:
    """Return a client; ``MILVUS_TOKEN`` is the user's token of a server that asks for one."""
    uri, _ = parse_address(address)
    return _connect(address, uri if uri.startswith("http") else os.path.abspath(uri), os.getpid())


@functools.cache
def _connect(address: str, uri: str, process: int) -> Any:
    """Connect once per process, as Milvus Lite opens a file once."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it writes to the terminal
    try:
        from pymilvus import MilvusClient
    except ModuleNotFoundError as error:
        raise UserError(f"{address} needs pymilvus: pip install '.[milvus]'") from error
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs each error that it raises
    if uri.startswith("http"):
        with explain(address):
            return MilvusClient(uri, token=os.environ.get("MILVUS_TOKEN", ""))
    lock = Path(uri, "LOCK")  # Milvus Lite waits for half a minute and says nothing of it
    if not Path(uri).parent.is_dir():
        raise UserError(f"{address}: there is no folder {Path(uri).parent}")
    if lock.exists():
        busy = f"another process has {uri} open: Milvus Lite is for one at a time; end it"
        with hold_lock(lock, busy):
            pass
    with explain(address):
        return MilvusClient(uri)


@contextlib.contextmanager
def explain(address: str) -> Iterator[None]:
    """Turn errors of Milvus into a UserError."""
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except MilvusException as error:
        raise UserError(f"{address}: {getattr(error, 'message', '') or error}") from error


def create_collections(client: Any, name: str, info: IndexInfo, properties: Any) -> None:
    """Create the collection of images, and that of the paths that were removed."""
    from pymilvus import DataType

    removed = client.create_schema(auto_id=False)
    removed.add_field("path", DataType.VARCHAR, max_length=MAX_TEXT, is_primary=True)
    removed.add_field("unused", DataType.FLOAT_VECTOR, dim=2)  # Milvus wants a vector
    images = client.create_schema(auto_id=False)
    images.add_field("id", DataType.INT64, is_primary=True)
    images.add_field("path", DataType.VARCHAR, max_length=MAX_TEXT)
    images.add_field("camera", DataType.VARCHAR, max_length=MAX_TEXT, is_partition_key=True)
    images.add_field("time", DataType.DOUBLE, nullable=True)
    for text in ("identity", "version"):
        images.add_field(text, DataType.VARCHAR, max_length=MAX_TEXT, nullable=True)
    parts = max(1, info.num_parts)
    images.add_field("visibility", DataType.ARRAY, element_type=DataType.FLOAT, max_capacity=parts)
    images.add_field("vector", DataType.FLOAT_VECTOR, dim=info.dim)
    other = client.prepare_index_params()
    other.add_index("unused", index_type="FLAT", metric_type="L2")
    client.create_collection(
        f"{name}_withdrawn", schema=removed, index_params=other, consistency_level="Strong"
    )
    client.create_collection(name, schema=images, properties=properties, consistency_level="Strong")
    create_index(client, name, "exact", info)


def create_index(client: Any, name: str, kind: str, info: IndexInfo) -> None:
    """Create the index of the vectors."""
    parts = max(n for n in range(1, min(128, info.dim) + 1) if info.dim % n == 0)
    parameters = {
        "exact": {}, "hnsw": {"M": 32, "efConstruction": 100}, "ivf": {"nlist": 1024},
        "ivfpq": {"nlist": 1024, "m": parts, "nbits": 8},
    }  # fmt: skip
    index = client.prepare_index_params()
    index.add_index(
        "vector", index_type=INDEXES[kind], metric_type=METRICS.get(info.metric, "IP"),
        params=parameters[kind],
    )  # fmt: skip
    client.create_index(name, index)
