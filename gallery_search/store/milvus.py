"""A gallery in Milvus: a collection of a server or cluster, or a file of Milvus Lite.

Camera is the partition key, time and identity are scalar fields, and what describes the gallery,
such as the model's fingerprint, are properties of the collection. The similarities of hits are
computed from their vectors again, so that they equal those of a folder. Milvus Lite is for tests
and a laptop: one process at a time opens its file, for reading, too.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from gallery_search.store import explain_damage
from gallery_search.store.metadata import (
    DATES_FROM,
    Filter,
    Hit,
    IndexInfo,
    Item,
    check_path,
    natural_key,
    parse_info,
)
from gallery_search.store.milvus_writer import (
    INDEXES,
    MAX_BYTES,
    MilvusWriter,
    choose_kind,
    connect,
    create_collections,
    explain,
    parse_address,
)
from gallery_search.store.protocol import NO_FILTER, explain_other_model
from gallery_search.store.similarity import (
    SPARE,
    choose_depth,
    compute_similarities,
    prepare_queries,
)
from occluded_reid.data.image_names import make_id
from occluded_reid.evaluation.distances import split_range
from occluded_reid.modeling.outputs import Embedding
from occluded_reid.utils.errors import UserError

PREFIX = "occluded_reid."  # of the collection's properties
FIELDS = ["id", "path", "camera", "time", "identity", "version", "visibility"]
MAX_ROWS = 16_384  # that Milvus answers at once
LAST = 1e12  # no time is larger


class MilvusStore:
    """A store in Milvus; see :class:`gallery_search.Store`."""

    def __init__(self, address: str | os.PathLike[str], fingerprint: str = "", gallery: str = ""):
        self.address = str(address)
        if not self.exists(address):
            raise UserError(f"{address} is not a gallery index: there is none; use 'build'")
        self._name = parse_address(self.address)[1]
        self._client = connect(self.address)
        self._gallery, self._fingerprint = gallery, fingerprint
        with explain(self.address):
            for name in (self._name, f"{self._name}_withdrawn"):
                self._client.load_collection(name)
        self._fingerprint = self.info().fingerprint

    @classmethod
    def create(cls, address: str | os.PathLike[str], **values: Any) -> MilvusStore:
        """Create the collections of an empty gallery."""
        info = IndexInfo(**values)
        if cls.exists(address):
            raise UserError(f"{address} exists already")
        properties = {PREFIX + key: str(value) for key, value in asdict(info).items() if value}
        properties.setdefault(f"{PREFIX}num_parts", "0")
        with explain(str(address)):
            name = parse_address(str(address))[1]
            create_collections(connect(str(address)), name, info, properties)
        return cls(address, info.fingerprint)

    @staticmethod
    def exists(address: str | os.PathLike[str]) -> bool:
        """Whether there is such a collection."""
        uri, name = parse_address(str(address))
        if not uri.startswith("http") and not os.path.exists(uri):
            return False  # connecting would create the file
        with explain(str(address)):
            return bool(connect(str(address)).has_collection(name))

    def info(self) -> IndexInfo:
        """Return the description."""
        with explain(self.address):
            found = self._client.describe_collection(self._name)["properties"]
        types = {field.name: int if field.type == "int" else str for field in fields(IndexInfo)}
        try:
            values = {name: kind(found[PREFIX + name]) for name, kind in types.items()
                      if PREFIX + name in found}  # fmt: skip
            info = parse_info(json.dumps(values), IndexInfo)
        except (TypeError, ValueError, AttributeError) as error:
            raise explain_damage(self.address, f"is no gallery: {error}") from error
        if self._fingerprint and info.fingerprint != self._fingerprint:
            raise explain_other_model(self.address, info, self._fingerprint)
        return info

    def describe(self) -> str:
        """Return one line on how it is searched."""
        with explain(self.address):
            index = self._client.describe_index(self._name, "vector")
        return next(kind for kind, name in INDEXES.items() if name == index["index_type"])

    def is_outdated(self, kind: str = "auto") -> bool:
        """Whether the index is of another kind; new images belong to it without more."""
        return self.describe() != choose_kind(kind, len(self))

    def __len__(self) -> int:
        self.info()
        return int(self._query("", ["count(*)"], None)[0]["count(*)"])

    def search(
        self, features: np.ndarray | Embedding, top: int = 10, filter: Filter = NO_FILTER,
        *, exact: bool = False,
    ) -> list[list[Hit]]:  # fmt: skip
        """Return the most similar images of each query, best first.

        For ``shared``, the images that are nearest by ``query`` are compared, all of them up to
        ``MAX_ROWS`` if ``exact``. An index that is not exact cannot compare every image.
        """
        info = self.info()
        queries = prepare_queries(info, features, top)
        if exact and (kind := self.describe()) != "exact":
            raise UserError(
                f"{self.address} is searched by {kind}; 'optimise --kind exact' makes it exact"
            )
        depth = top + SPARE
        if info.metric == "shared":  # by query, whose order is not that of shared
            depth = len(self) if exact else choose_depth(top)
        depth = max(1, min(depth, MAX_ROWS))
        step = max(1, MAX_BYTES // (4 * info.dim * depth))
        found: list[Any] = []
        for part in split_range(len(queries), step):
            with explain(self.address):
                found += self._client.search(
                    self._name, list(queries[part]), _to_expression(filter), depth,
                    [*FIELDS, "vector"], anns_field="vector",
                    search_params={"params": {"ef": max(64, depth), "nprobe": 64}},
                )  # fmt: skip
        results = []
        for query, near in zip(queries, found, strict=True):
            hits = [self._to_hit(info, {**row["entity"], "id": row["id"]}) for row in near]
            vectors = np.reshape([hit.features for hit in hits], (len(hits), info.dim))
            seen = None
            if info.metric == "shared":
                seen = np.reshape([hit.visibility for hit in hits], (len(hits), info.num_parts))
            similarities = compute_similarities(query, vectors, info.metric, seen)
            order = np.argsort(-similarities, kind="stable")[:top].tolist()
            results.append([hits[n]._replace(similarity=float(similarities[n])) for n in order])
        return results

    def look_up(self, ids: Sequence[int]) -> list[Hit]:
        """Return the images with these ids, without unknown ones, in order."""
        info = self.info()
        hits = {row["id"]: self._to_hit(info, row) for row in self._get(ids, [*FIELDS, "vector"])}
        return [hits[number] for number in ids if number in hits]

    def select(self, filter: Filter, limit: int | None = None) -> np.ndarray:
        """Return the ids of the images that ``filter`` accepts, at most ``limit``."""
        self.info()
        expression = _to_expression(filter)
        if limit is not None and limit <= MAX_ROWS:
            rows: Iterable[Any] = self._query(expression, ["id"], limit) if limit else []
        else:
            rows = self._iterate(self._name, expression, ["id"])
        return np.array(sorted(row["id"] for row in rows)[:limit], np.int64)

    def versions_of(self, paths: Sequence[str]) -> dict[str, str | None]:
        """Return the version, as it was added, of each path that is there."""
        ids = [make_id(check_path(path)) for path in paths]
        return {row["path"]: row["version"] for row in self._get(ids, ["path", "version"])}

    def withdrawn(self) -> set[str]:
        """Return the paths that were removed and not added again."""
        return {row["path"] for row in self._iterate(f"{self._name}_withdrawn", "", ["path"])}

    def cameras(self) -> list[str]:
        """Return the cameras' names in natural order: c2 before c10."""
        names: list[str] = []
        while rows := self._query(f"not ({_to_expression(Filter(('', *names)))})", ["camera"], 1):
            names.append(rows[0]["camera"])
        return sorted(names, key=natural_key)

    def time_span(self) -> tuple[float, float] | None:
        """Return the first and the last time; None if no image has one."""
        if not (rows := self._query(f"time <= {LAST!r}", ["time"], 1)):
            return None
        return self._find_time(rows[0]["time"], -LAST), self._find_time(rows[0]["time"], LAST)

    def _find_time(self, best: float, bound: float) -> float:
        """Bisect for the time that is nearest to ``bound``, as Milvus finds no extremes."""
        while True:
            middle = (best + bound) / 2 if abs(bound - best) > 1e-3 else best
            side = ">" if bound > best else "<"
            if rows := self._query(f"time {side} {middle!r}", ["time"], 1):
                best = rows[0]["time"]
            elif middle == best:
                return best
            else:
                bound = middle

    @contextlib.contextmanager
    def writer(self) -> Iterator[MilvusWriter]:
        """Yield a writer. Writers of one server may work at once: an id is that of its path."""
        yield MilvusWriter(self, self._client, self._name)
        with explain(self.address):
            self._client.flush(self._name)

    def _to_hit(self, info: IndexInfo, row: dict[str, Any]) -> Hit:
        vector, seen = (np.array(row[key], np.float32) for key in ("vector", "visibility"))
        if vector.shape != (info.dim,) or seen.shape != (info.num_parts,):
            raise explain_damage(self.address, f"cannot be used: another shape of {row['path']}")
        item = Item(
            check_path(row["path"]), row["camera"] or None, row["time"], row["identity"] or None
        )
        return Hit(row["id"], item, self._gallery or info.gallery, vector, seen)

    def _query(self, expression: str, names: list[str], limit: int | None) -> list[Any]:
        words = {} if limit is None else {"limit": limit}
        with explain(self.address):
            return list(
                self._client.query(self._name, filter=expression, output_fields=names, **words)
            )

    def _get(self, ids: Sequence[int], names: list[str]) -> Iterator[dict[str, Any]]:
        """Yield some fields of the images with these ids."""
        for part in split_range(len(ids), 1000):
            with explain(self.address):
                numbers = [int(number) for number in ids[part]]
                yield from self._client.query(self._name, ids=numbers, output_fields=names)

    def _iterate(self, name: str, expression: str, names: list[str]) -> Iterator[dict[str, Any]]:
        """Yield some fields of every row of a collection that an expression accepts."""
        with explain(self.address):
            rows = self._client.query_iterator(
                name, batch_size=MAX_ROWS, filter=expression, output_fields=names
            )
            while batch := rows.next():
                yield from batch
            rows.close()


def _to_expression(filter: Filter) -> str:
    """Return Milvus's form of a filter."""
    names = json.dumps(filter.cameras, ensure_ascii=False)
    clauses = [f"camera in {names}"] if filter.cameras else []
    for bound, side in ((filter.since, ">="), (filter.until, "<=")):
        if bound is not None:
            kind = ">=" if bound >= DATES_FROM else "<"
            clauses += [f"time {side} {float(bound)!r}", f"time {kind} {DATES_FROM!r}"]
    return " and ".join(clauses)
