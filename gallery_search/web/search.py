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

from gallery_search import Filter, GalleryIndex, Hit, IndexedImage, Item
from gallery_search.store.metadata import parse_time
from gallery_search.web import MAX_HITS
from gallery_search.web.images import ImageError, decode_image, make_thumbnail, read_gallery_image
from occluded_reid.deploy.embedder import Embedder
from occluded_reid.utils.errors import UserError

logger = logging.getLogger(__name__)

MAX_NAME = 100  # characters of an uploaded file's name


class RequestError(UserError):
    """A request is invalid; whoever sent it may see the reason."""


@dataclass(frozen=True)
class Query:
    """A query image.

    Attributes:
        name: Of its file.
        features: (D,) float32.
        visibility: (P,) in [0, 1], 1 = visible.
        thumbnail: A JPEG; None if the file is missing.
        key: Of a gallery image; ``""`` for an upload.
        identity: If known.
    """

    name: str
    features: np.ndarray
    visibility: np.ndarray
    thumbnail: bytes | None
    key: str = ""
    identity: str | None = None


@dataclass(frozen=True)
class Result:
    """A gallery image on the page.

    Attributes:
        key: For :meth:`GallerySearch.query_from_gallery`.
        item: Its metadata.
        visibility: (P,) in [0, 1], 1 = visible.
        thumbnail: A JPEG; None if the file cannot be shown.
        similarity: To the query; None without a query.
    """

    key: str
    item: Item
    visibility: np.ndarray
    thumbnail: bytes | None
    similarity: float | None = None


@dataclass(frozen=True)
class SearchResult:
    """The gallery images most similar to the query; without a query, some gallery images."""

    query: Query | None
    results: list[Result]


class GallerySearch:
    """Answer the page's requests; threads may share it.

    Args:
        indexes: Searched as one.
        embedder: The model that built them.
    """

    def __init__(self, indexes: Sequence[GalleryIndex], embedder: Embedder):
        self._indexes = list(indexes)
        self._embedder = embedder
        self._model_lock = threading.Lock()  # two images at once take longer than one by one

    def query_from_upload(self, content: bytes, name: str = "") -> Query:
        """Embed an uploaded file.

        Raises:
            ImageError: It is too large, or not an image.
        """
        image = decode_image(content)
        pixels = np.ascontiguousarray(np.asarray(image)[:, :, ::-1])
        with self._model_lock:
            embedding = self._embedder.embed([pixels])
        features, visibility = embedding.features[0], embedding.visibility[0]
        return Query(name[:MAX_NAME], features, visibility, make_thumbnail(image))

    def query_from_gallery(self, key: str) -> Query:
        """Return a gallery image as a query; its features are in the index.

        Raises:
            RequestError: There is no such image any more.
        """
        shard, _, number = key.partition(":")
        found: list[IndexedImage] = []
        if shard.isdecimal() and number.isdecimal() and max(len(shard), len(number)) < 19:
            index = self._indexes[int(shard) : int(shard) + 1]
            found = [image for each in index for image in each.look_up([int(number)])]
        if not found:
            raise RequestError("This image is not in the gallery any more; choose another one.")
        image, item = found[0], found[0].item
        thumbnail = self._read_thumbnail(image.image, item)
        return Query(item.path, image.features, image.visibility, thumbnail, key, item.identity)

    def search(
        self,
        query: Query | None = None,
        *,
        cameras: Sequence[str] = (),
        since: str = "",
        until: str = "",
        top: int = 20,
    ) -> SearchResult:
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
        results = self._browse(filter, top) if query is None else self._rank(query, filter, top)
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
            info, kind = index.info(), "exact search"
            if built := info.approximation:
                kind = (
                    f"{built.kind} search, recall@10 {built.recall:.3f} ({built.queries} queries)"
                )
            model = f"model {Path(info.weights).name or 'unknown'} ({info.fingerprint[:8]})"
            lines.append(f"{len(index)} images, {info.metric} similarity, {kind}, {model}")
        return lines

    def _rank(self, query: Query, filter: Filter, top: int) -> list[Result]:
        hits = [
            (f"{shard}:{hit.id}", hit)
            for shard, index in enumerate(self._indexes)
            for hit in index.search(query.features[None], top + bool(query.key), filter)[0]
        ]
        others = [(key, hit) for key, hit in hits if key != query.key]
        others.sort(key=lambda pair: -pair[1].similarity)
        return [self._build_result(key, hit, hit.similarity) for key, hit in others[:top]]

    def _browse(self, filter: Filter, top: int) -> list[Result]:
        results: list[Result] = []
        for shard, index in enumerate(self._indexes):
            ids = index.select(filter, top - len(results)).tolist()
            images = index.look_up(ids)
            results += [self._build_result(f"{shard}:{image.id}", image) for image in images]
        return results

    def _build_result(
        self, key: str, image: Hit | IndexedImage, similarity: float | None = None
    ) -> Result:
        thumbnail = self._read_thumbnail(image.image, image.item)
        return Result(key, image.item, image.visibility, thumbnail, similarity)

    def _read_thumbnail(self, image: Path, item: Item) -> bytes | None:
        """Return a thumbnail; log and return None if the file cannot be shown."""
        try:
            folder = image.parents[item.path.count("/")]
            return make_thumbnail(read_gallery_image(folder, item.path))
        except ImageError as error:
            logger.warning(f"Cannot show {image} ({error})")
            return None
