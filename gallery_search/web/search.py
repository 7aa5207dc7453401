"""What the page asks and what it gets, in plain Python.

Shapes: D feature dimensions, P parts.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gallery_search import Filter, Hit, Store
from gallery_search.store.metadata import parse_time
from gallery_search.web import MAX_HITS
from gallery_search.web.images import RequestError, decode_image, make_thumbnail, read_gallery_image
from occluded_reid.deploy.embedder import Embedder
from occluded_reid.modeling.outputs import Embedding
from occluded_reid.utils.errors import UserError

logger = logging.getLogger(__name__)

MAX_NAME = 100  # characters of an uploaded file's name


@dataclass(frozen=True)
class Query:
    """A query image."""

    name: str  # of its file
    features: np.ndarray  # (P, C) float32, or (D,) of an image in the index
    visibility: np.ndarray  # (P,) in [0, 1], 1 = visible
    thumbnail: bytes | None  # a JPEG; None if the file cannot be shown
    key: str = ""  # of a gallery image; "" for an upload
    identity: str | None = None  # if known


@dataclass(frozen=True)
class Result:
    """A gallery image on the page."""

    key: str  # for `GallerySearch.query_from_gallery`
    hit: Hit  # its similarity is NaN without a query
    thumbnail: bytes | None  # a JPEG; None if the file cannot be shown


@dataclass(frozen=True)
class SearchResult:
    """The gallery images most similar to the query; without a query, some gallery images."""

    query: Query | None
    results: list[Result]


class GallerySearch:
    """Answer the page's requests from indexes of one model; threads may share it."""

    def __init__(self, indexes: Sequence[Store], embedder: Embedder):
        self._indexes = list(indexes)
        self._embedder = embedder
        self._model_lock = threading.Lock()  # two images at once take longer than one by one

    def query_from_upload(self, content: bytes, name: str = "") -> Query:
        """Embed an uploaded file; it may be rejected by :func:`decode_image`."""
        image = decode_image(content)
        with self._model_lock:
            embedding = self._embedder.embed(image)
        features, visibility = embedding.features[0], embedding.visibility[0]
        return Query(name[:MAX_NAME], features, visibility, make_thumbnail(image))

    def query_from_gallery(self, key: str) -> Query:
        """Return a gallery image as a query, or a RequestError if it was removed."""
        shard, _, number = key.partition(":")
        found: list[Hit] = []
        if shard.isdecimal() and number.isdecimal() and max(len(shard), len(number)) < 20:
            for index in self._indexes[int(shard) : int(shard) + 1]:
                found = index.look_up([int(number)])
        if not found:
            raise RequestError("This image is not in the gallery any more; choose another one.")
        hit, item, thumbnail = found[0], found[0].item, _read_thumbnail(found[0])
        return Query(item.path, hit.features, hit.visibility, thumbnail, key, item.identity)

    def search(
        self, query: Query | None = None, *, cameras: Sequence[str] = (),
        since: str = "", until: str = "", top: int = 20,
    ) -> SearchResult:  # fmt: skip
        """Return the gallery images most similar to the query, without the query itself.

        Args:
            query: None for some images of the gallery.
            cameras: Names; empty for all.
            since: Earliest time, for :func:`parse_time`; ``""`` for no bound.
            until: Latest time, likewise.
            top: Maximum number of images, 1 to ``MAX_HITS``.

        Raises:
            RequestError: An invalid time, or another number of images.
        """
        if not 1 <= top <= MAX_HITS:
            raise RequestError(f"The number of images must be between 1 and {MAX_HITS}.")
        try:
            bounds = [parse_time(text) if text.strip() else None for text in (since, until)]
        except UserError as error:
            raise RequestError(f"Time: {error}.") from error
        filter = Filter(tuple(cameras), *bounds)
        found: list[tuple[str, Hit]] = []
        for shard, index in enumerate(self._indexes):
            if query is None:
                hits = index.look_up(index.select(filter, top - len(found)).tolist())
            else:  # one more than shown, as a gallery image finds itself
                embedding = Embedding(query.features[None], query.visibility[None])
                hits = index.search(embedding, top + bool(query.key), filter)[0]
            found += [(f"{shard}:{hit.id}", hit) for hit in hits]
        if query is not None:
            found = [(key, hit) for key, hit in found if key != query.key]
            found.sort(key=lambda pair: -pair[1].similarity)
        results = [Result(key, hit, _read_thumbnail(hit)) for key, hit in found[:top]]
        return SearchResult(query, results)

    def cameras(self) -> list[str]:
        """Return the names of all cameras; numbers first, in their order."""
        names = {name for index in self._indexes for name in index.cameras()}
        return sorted(names, key=lambda name: (not name.isdecimal(), len(name), name))

    def time_span(self) -> tuple[float, float] | None:
        """Return the first and the last time; None if no image has one."""
        spans = [span for index in self._indexes if (span := index.time_span())]
        return (min(s[0] for s in spans), max(s[1] for s in spans)) if spans else None

    def describe(self) -> list[str]:
        """Return one line per index: images, metric, kind of search, model."""
        lines = []
        for index in self._indexes:
            info, kind = index.info(), f"search: {index.describe()}"
            model = f"model {Path(info.weights).name or 'unknown'} ({info.fingerprint[:8]})"
            lines.append(f"{len(index)} images, {info.metric} similarity, {kind}, {model}")
        return lines


def _read_thumbnail(hit: Hit) -> bytes | None:
    """Return a thumbnail; log and return None if the file cannot be shown."""
    try:
        folder = hit.image.parents[hit.item.path.count("/")]
        return make_thumbnail(read_gallery_image(folder, hit.item.path))
    except RequestError as error:
        logger.warning(f"Cannot show {hit.image} ({error})")
        return None
