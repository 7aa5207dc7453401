"""What the web page asks and what it gets, without any web: plain Python.

Shapes: H, W height and width in pixels, D feature dimensions, P parts.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gallery_search import Filter, GalleryIndex, Hit, Item, Known
from gallery_search.metadata import parse_time
from gallery_search.web.pictures import PictureError, decoded, gallery_picture, thumbnail
from occluded_reid.deploy.embedder import Embedder
from occluded_reid.utils.errors import UserError

logger = logging.getLogger(__name__)

MOST_HITS = 100
LONGEST_NAME = 100  # letters of an uploaded file's name


class QuestionError(UserError):
    """A question that cannot be answered, for a reason that may be told to whoever asked."""


@dataclass(frozen=True)
class Query:
    """A picture that is asked with.

    Attributes:
        name: of its file.
        features: (D,) float32.
        visibility: (P,) in [0, 1], 1 = visible.
        thumbnail: a JPEG, or None where the picture is gone.
        key: of a gallery image; ``""`` for an uploaded one.
        identity: where it is known.
    """

    name: str
    features: np.ndarray
    visibility: np.ndarray
    thumbnail: bytes | None
    key: str = ""
    identity: str | None = None


@dataclass(frozen=True)
class Shown:
    """A gallery image on the page.

    Attributes:
        key: by which :meth:`GallerySearch.chosen` finds it.
        item: what is known of it.
        visibility: (P,) in [0, 1], 1 = visible.
        thumbnail: a JPEG, or None where there is no picture to show.
        similarity: to the query; None where there is none.
    """

    key: str
    item: Item
    visibility: np.ndarray
    thumbnail: bytes | None
    similarity: float | None = None


@dataclass(frozen=True)
class Answer:
    """The images found, the best first; without a query some of the gallery's images."""

    query: Query | None
    shown: list[Shown]


class GallerySearch:
    """Answers the page's questions; any number of threads may ask at once.

    Args:
        indexes: one or several, asked as one.
        embedder: the model that they were built with.
    """

    def __init__(self, indexes: Sequence[GalleryIndex], embedder: Embedder):
        self._indexes = list(indexes)
        self._embedder = embedder
        self._model = threading.Lock()  # two pictures at once take longer than one by one

    def uploaded(self, content: bytes, name: str = "") -> Query:
        """Return the query that a file's content is.

        Raises:
            PictureError: it is too large, or no picture.
        """
        image = decoded(content)
        pixels = np.ascontiguousarray(np.asarray(image)[:, :, ::-1])
        with self._model:
            embedding = self._embedder.embed([pixels])
        return Query(
            name[:LONGEST_NAME], embedding.features[0], embedding.visibility[0], thumbnail(image)
        )

    def chosen(self, key: str) -> Query:
        """Return the query that a gallery image is; its features stand in the index.

        Raises:
            QuestionError: there is no such image, or not any more.
        """
        shard, _, number = key.partition(":")
        known: list[Known] = []
        if shard.isdecimal() and number.isdecimal() and max(len(shard), len(number)) < 19:
            index = self._indexes[int(shard) : int(shard) + 1]
            known = [found for each in index for found in each.look_up([int(number)])]
        if not known:
            raise QuestionError("This picture is not in the gallery any more; choose another one.")
        found = known[0]
        picture = self._picture(found.image, found.item)
        return Query(
            found.item.path, found.features, found.visibility, picture, key, found.item.identity
        )

    def answer(
        self,
        query: Query | None = None,
        *,
        cameras: Sequence[str] = (),
        since: str = "",
        until: str = "",
        top: int = 20,
    ) -> Answer:
        """Return the gallery images most like the query, without the query itself.

        Args:
            query: None for some images of the gallery to choose from.
            cameras: names; none of them: all cameras.
            since, until: as :func:`parse_time` reads them; ``""`` for no bound.
            top: how many at most, 1 to ``MOST_HITS``.

        Raises:
            QuestionError: a time that cannot be read, or another number of hits.
        """
        if not 1 <= top <= MOST_HITS:
            raise QuestionError(f"The number of pictures must be between 1 and {MOST_HITS}.")
        try:
            bounds = [parse_time(text) if text.strip() else None for text in (since, until)]
        except UserError as error:
            raise QuestionError(f"Time: {error}.") from error
        filter = Filter(tuple(cameras), *bounds)
        return Answer(
            query, self._browsed(filter, top) if query is None else self._found(query, filter, top)
        )

    def cameras(self) -> list[str]:
        """Return the names of all cameras, numbers in their order."""
        names = {name for index in self._indexes for name in index.cameras()}
        return sorted(names, key=lambda name: (not name.isdecimal(), len(name), name))

    def time_span(self) -> tuple[float, float] | None:
        """Return the first and the last time; None where no image has one."""
        spans = [span for index in self._indexes if (span := index.time_span())]
        return (min(s[0] for s in spans), max(s[1] for s in spans)) if spans else None

    def notes(self) -> list[str]:
        """Say what is searched: a line for each index."""
        notes = []
        for index in self._indexes:
            facts, how = index.facts(), "exact search"
            if kind := facts.approximation:
                how = f"{kind.kind} search, recall@10 {kind.recall:.3f} ({kind.queries} queries)"
            model = f"model {Path(facts.weights).name or 'unknown'} ({facts.fingerprint[:8]})"
            notes.append(f"{len(index)} pictures, {facts.metric} similarity, {how}, {model}")
        return notes

    def _found(self, query: Query, filter: Filter, top: int) -> list[Shown]:
        hits = [
            (f"{shard}:{hit.id}", hit)
            for shard, index in enumerate(self._indexes)
            for hit in index.search(query.features[None], top + bool(query.key), filter)[0]
        ]
        others = [(key, hit) for key, hit in hits if key != query.key]
        others.sort(key=lambda pair: -pair[1].similarity)
        return [self._shown(key, hit, hit.similarity) for key, hit in others[:top]]

    def _browsed(self, filter: Filter, top: int) -> list[Shown]:
        found: list[Shown] = []
        for shard, index in enumerate(self._indexes):
            ids = index.select(filter, top - len(found)).tolist()
            found += [self._shown(f"{shard}:{one.id}", one) for one in index.look_up(ids)]
        return found

    def _shown(self, key: str, found: Hit | Known, similarity: float | None = None) -> Shown:
        picture = self._picture(found.image, found.item)
        return Shown(key, found.item, found.visibility, picture, similarity)

    def _picture(self, image: Path, item: Item) -> bytes | None:
        """Return a thumbnail, or None where there is nothing to show; the log says why."""
        try:
            return thumbnail(gallery_picture(image.parents[item.path.count("/")], item.path))
        except PictureError as error:
            logger.warning(f"Cannot be shown: {image} ({error})")
            return None
