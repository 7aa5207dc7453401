"""What holds for a whole index."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from occluded_reid.evaluation.distances import METRICS


@dataclass(frozen=True)
class Approximation:
    """A faiss index over the first rows, which proposes items that are then compared exactly.

    Attributes:
        kind: ``hnsw``, ``ivf`` or ``ivfpq``.
        serial: which file.
        rows: how many rows it covers; those behind them are all looked at.
        sha256: of its file.
        effort: how far it searches: lists of ``ivf`` and ``ivfpq``, breadth of ``hnsw``.
        recall: share of the true 10 nearest that it found when it was measured, in [0, 1].
        queries: how many searches that figure rests on.
    """

    kind: str
    serial: int
    rows: int
    sha256: str
    effort: int
    recall: float
    queries: int


@dataclass(frozen=True)
class Facts:
    """What holds for the whole index.

    Attributes:
        metric: ``cosine``, ``euclidean`` or ``dot``.
        dim: numbers in a vector.
        num_parts: how many parts have a visibility.
        fingerprint: of model, metric and preprocessing.
        weights: where the model was read from.
        gallery: the folder below which the images lie.
        generation: which file of vectors.
        rows: how many of its rows belong to the index, removed ones among them.
        serial: of the approximation that was built last.
        approximation: None where every search is exact.
    """

    metric: str
    dim: int
    num_parts: int
    fingerprint: str
    weights: str = ""
    gallery: str = ""
    generation: int = 0
    rows: int = 0
    serial: int = 0
    approximation: Approximation | None = None

    def written(self) -> str:
        """Return the facts as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Facts:
        """Read what :meth:`written` returned.

        Raises:
            ValueError, TypeError: it is something else.
        """
        values = json.loads(text)
        inner = values.get("approximation")
        facts = cls(**{**values, "approximation": Approximation(**inner) if inner else None})
        _check_types(facts)
        if facts.metric not in METRICS or not facts.dim:
            raise ValueError(f"metric {facts.metric!r} in {facts.dim} dimensions")
        if facts.approximation:
            _check_types(facts.approximation)
            if facts.approximation.rows > facts.rows:
                raise ValueError("the approximation covers more rows than there are")
        return facts


def _check_types(thing: Any) -> None:
    """Look whether the values are what the annotations say, and no number is negative."""
    kinds = {"str": str, "int": int, "float": float}
    for field in fields(thing):
        value, kind = getattr(thing, field.name), kinds.get(str(field.type))
        if kind and type(value) is not kind:
            raise ValueError(f"{field.name} is {value!r}")
        if isinstance(value, (int, float)) and not value >= 0:
            raise ValueError(f"{field.name} is {value!r}")
