"""What the page asks and what it gets, in plain Python.

Shapes: D feature dimensions, P parts.
"""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gallery_search import Filter, Hit, Store
from gallery_search.calibration import Thresholds
from gallery_search.store.metadata import natural_key, parse_time
from gallery_search.video import Frame, find_frame
from gallery_search.web.images import Decoder, RequestError, make_jpeg, read_gallery_image
from gallery_search.web.question import Question
from occluded_reid.deploy.embedder import Embedder
from occluded_reid.modeling.outputs import Embedding
from occluded_reid.modeling.similarity import PART_METRICS, make_rows
from occluded_reid.utils.errors import UserError

logger = logging.getLogger(__name__)

MAX_UPLOADS = 256  # of all visitors together; the ones not used for longest are forgotten first
MAX_UPLOAD_BYTES = 64 * 2**20  # of all of them
UPLOAD_HOURS = 8.0  # that an upload is kept after its last use
SPARE = 3  # candidates per answer when some images are rejected
LOST = "A picture of this search is not available any more. Choose it again."


@dataclass(frozen=True)
class Query:
    """An image to search with."""

    key: str  # names it in addresses
    row: np.ndarray  # (D,) float32, as an index holds it
    visibility: np.ndarray  # (P,) in [0, 1], 1 = visible
    hit: Hit | None = None  # None for an upload
    jpegs: tuple[tuple[str, bytes], ...] = ()  # of an upload, by size


class Answer(NamedTuple):
    """A gallery image on the page."""

    key: str
    hit: Hit
    similarity: float  # to the query's images, on average; NaN without a query
    verdict: str  # certain, possible or unlikely; "" where no thresholds are known


class Comparison(NamedTuple):
    """A query's image beside an answer."""

    query: Query
    answer: Answer
    parts: list[tuple[float, float, float]]  # visibility in both, similarity; of each part
    frame: Frame | None  # of the video that the answer was cut from


class Uploads:
    """Uploaded images: bounded in number, each bounded in size, forgotten after some hours."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[float, Query]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, query: Query) -> None:
        """Keep an upload; others may have to go."""
        with self._lock:
            self._kept[query.key] = time.monotonic(), query
            while len(self._kept) > MAX_UPLOADS or self._size() > MAX_UPLOAD_BYTES:
                self._kept.popitem(last=False)

    def _size(self) -> int:
        return sum(len(jpeg) for _, query in self._kept.values() for _, jpeg in query.jpegs)

    def get(self, key: str) -> Query | None:
        """Return an upload, if it is still kept."""
        with self._lock:
            oldest = time.monotonic() - 3600 * UPLOAD_HOURS
            while self._kept and next(iter(self._kept.values()))[0] < oldest:
                self._kept.popitem(last=False)
            if key not in self._kept:
                return None
            query = self._kept.pop(key)[1]
            self._kept[key] = time.monotonic(), query
            return query


class GallerySearch:
    """Answer the page's requests from indexes of one model; threads may share it."""

    def __init__(
        self, indexes: Sequence[Store], embedder: Embedder, decoder: Decoder | None = None,
        thresholds: Thresholds | None = None,
    ):  # fmt: skip
        self.indexes = list(indexes)
        self.thresholds = thresholds
        self.stripes = embedder.stripes
        self._embedder = embedder
        self._metric = self.indexes[0].info().metric
        self._decoder = decoder or Decoder()
        self._uploads = Uploads()
        self._model_lock = threading.Lock()  # two images at once take longer than one by one
        example = embedder.concatenate([])
        # whether rows are those of the parts, one after the other
        self._has_parts = example.features.shape[1] == example.visibility.shape[1]

    def preview(self, content: bytes) -> bytes:
        """Return an upload as a JPEG that every browser shows, to draw a box on it."""
        return make_jpeg(self._decoder.decode(content), "large")

    def add_upload(self, content: bytes) -> str:
        """Embed an uploaded crop and return its key; see :meth:`Decoder.decode` for refusals."""
        image = self._decoder.decode(content)
        with self._model_lock:
            embedding = self._embedder.embed(image)
        row = make_rows(embedding.tensors(), self._metric).numpy()[0]
        visibility = embedding.visibility[0]
        jpegs = tuple((size, make_jpeg(image, size)) for size in ("small", "large"))
        query = Query(secrets.token_urlsafe(16), row, visibility, None, jpegs)
        self._uploads.add(query)
        return query.key

    def find_image(self, key: str) -> Query:
        """Return an upload or a gallery image, or a RequestError if it is gone."""
        if not re.fullmatch(r"\d{1,4}\.\d{1,19}", key, re.ASCII):
            query = self._uploads.get(key)
            if query is None:
                raise RequestError(LOST)
            return query
        shard, number = map(int, key.split("."))
        indexes = self.indexes[shard : shard + 1] if number < 2**63 else []
        hits = [hit for index in indexes for hit in index.look_up([number])]
        if not hits:
            raise RequestError(LOST)
        return Query(key, hits[0].features, hits[0].visibility, hits[0])

    def render_image(self, key: str, size: str) -> bytes | None:
        """Return a JPEG of an upload or a gallery image; None if its file cannot be shown."""
        query = self.find_image(key)
        if query.hit is None:
            return dict(query.jpegs)[size]
        try:
            image = read_gallery_image(Path(query.hit.gallery), query.hit.item.path)
            return make_jpeg(image, size)
        except RequestError as error:
            logger.warning(f"Cannot show {query.hit.image} ({error})")
            return None

    def ask(self, question: Question) -> list[Answer]:
        """Return the best answers, best first; without a query, some gallery images.

        The query is the mean of its images and the confirmed ones. What is more like a rejected
        image than like those goes down by the difference. Images that are part of the query, or
        confirmed or rejected already, are no answers.

        Raises:
            RequestError: An invalid time, or an image that is gone.
        """
        filter = read_filter(question)
        if not question.images:
            return self._browse(filter, question.top)
        known = {*question.images, *question.same, *question.other}
        asked = [self.find_image(key) for key in (*question.images, *question.same)]
        rejected = [self.find_image(key) for key in question.other]
        count = question.top * (SPARE if rejected else 1) + len(known)
        found: list[tuple[str, Hit]] = []
        for shard, index in enumerate(self.indexes):
            hits = index.search(self._mean(asked), count, filter)[0]
            found += [(f"{shard}.{hit.id}", hit) for hit in hits]
        found = [(key, hit) for key, hit in found if key not in known]
        answers = self.judge(asked, found)
        ranks = np.array([answer.similarity for answer in answers])
        if rejected and answers:
            nearest = self._compare(rejected, found).max(0)
            ranks = ranks - np.maximum(0, nearest - ranks)
        order = np.argsort(-ranks, kind="stable")
        return [answers[position] for position in order[: question.top]]

    def judge(self, asked: Sequence[Query], found: Sequence[tuple[str, Hit]]) -> list[Answer]:
        """Return how similar gallery images are to a query, on average over its images."""
        if not found:
            return []
        similarities = self._compare(asked, found).mean(0).tolist()
        judge = self.thresholds.judge if self.thresholds else lambda _: ""
        pairs = zip(found, similarities, strict=True)
        return [Answer(key, hit, value, judge(value)) for (key, hit), value in pairs]

    def judge_marked(self, question: Question, keys: Iterable[str]) -> list[Answer]:
        """Return the marked images of a search as answers to its own images."""
        found = [(key, hit) for key in keys if (hit := self.find_image(key).hit) is not None]
        return self.judge([self.find_image(key) for key in question.images], found)

    def compare(self, question: Question, key: str) -> Comparison:
        """Put an answer beside the query's image that is most like it."""
        asked = [self.find_image(each) for each in (*question.images, *question.same)]
        hit = self.find_image(key).hit
        if hit is None:
            raise RequestError(LOST)
        nearest = asked[int(self._compare(asked, [(key, hit)])[:, 0].argmax())]
        answer = self.judge(asked, [(key, hit)])[0]
        return Comparison(nearest, answer, self._compare_parts(nearest, hit), self.find_frame(key))

    def find_frame(self, key: str) -> Frame | None:
        """Return the frame of a video that a gallery image was cut from, if it is known."""
        hit = self.find_image(key).hit
        return None if hit is None else find_frame(Path(hit.gallery), hit.item.path)

    def cameras(self) -> list[str]:
        """Return the names of all cameras in natural order."""
        names = {name for index in self.indexes for name in index.cameras()}
        return sorted(names, key=natural_key)

    def time_span(self) -> tuple[float, float] | None:
        """Return the first and the last time; None if no image has one."""
        spans = [span for index in self.indexes if (span := index.time_span())]
        return (min(s[0] for s in spans), max(s[1] for s in spans)) if spans else None

    def visibility(self, key: str) -> np.ndarray | None:
        """Return the visibility of an image's parts; None if it is gone."""
        with contextlib.suppress(RequestError):
            return self.find_image(key).visibility
        return None

    def describe(self) -> str:
        """Return how many images are searched, and by which model."""
        info, count = self.indexes[0].info(), sum(map(len, self.indexes))
        model = Path(info.weights).name or "unknown"
        return f"{count} pictures, by the model {model} ({info.fingerprint[:8]})"

    def _browse(self, filter: Filter, top: int) -> list[Answer]:
        found: list[Answer] = []
        for shard, index in enumerate(self.indexes):
            hits = index.look_up(index.select(filter, top - len(found)).tolist())
            found += [Answer(f"{shard}.{hit.id}", hit, np.nan, "") for hit in hits]
        return found[:top]

    def _mean(self, queries: Sequence[Query]) -> Embedding:
        """Return one query for several images; each part counts by where it is visible."""
        rows, visibility = _stack(queries)
        if self._metric in ("cosine", *PART_METRICS):
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        if len(rows) == 1 or self._metric not in PART_METRICS:
            return Embedding(rows.mean(0)[None], visibility.max(0)[None])
        parts = rows.reshape(*visibility.shape, -1)
        mean = (visibility[..., None] * parts).sum(0)
        norms = np.linalg.norm(mean, axis=1, keepdims=True) * len(mean) ** 0.5
        return Embedding((mean / np.maximum(norms, 1e-12)).reshape(1, -1), visibility.max(0)[None])

    def _compare(self, queries: Sequence[Query], found: Sequence[tuple[str, Hit]]) -> np.ndarray:
        """Return the similarities (queries, found)."""
        gallery = [Query(key, hit.features, hit.visibility) for key, hit in found]
        return self._embedder.similarity(Embedding(*_stack(queries)), Embedding(*_stack(gallery)))

    def _compare_parts(self, query: Query, hit: Hit) -> list[tuple[float, float, float]]:
        """Return visibility and cosine of each part, if the model compares parts."""
        count = len(hit.visibility)
        if not self._has_parts:
            return []
        first, second = (row.reshape(count, -1) for row in (query.row, hit.features))
        norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        cosines = (first * second).sum(1) / np.maximum(norms, 1e-12)
        triples = zip(query.visibility, hit.visibility, cosines, strict=True)
        return [(float(a), float(b), float(c)) for a, b, c in triples]


def _stack(queries: Sequence[Query]) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([q.row for q in queries]), np.stack([q.visibility for q in queries])


def read_filter(question: Question) -> Filter:
    """Return the filter of a question, or a RequestError for an invalid time."""
    try:
        bounds = [parse_time(t) if t.strip() else None for t in (question.since, question.until)]
    except UserError as error:
        raise RequestError(f"Time: {error}.") from error
    return Filter(question.cameras, *bounds)
