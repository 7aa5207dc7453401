"""What describes a whole index."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from occluded_reid.evaluation.distances import METRICS


@dataclass(frozen=True)
class ApproximationInfo:
    """Describe the faiss index over the first rows.

    Attributes:
        kind: ``hnsw``, ``ivf`` or ``ivfpq``.
        serial: Number in its file name.
        rows: Rows that it covers; later rows are searched exactly.
        sha256: Of its file.
        effort: Lists (``ivf``, ``ivfpq``) or breadth (``hnsw``) of a search.
        recall: Measured recall@10, in [0, 1].
        queries: Number of searches behind that recall.
    """

    kind: str
    serial: int
    rows: int
    sha256: str
    effort: int
    recall: float
    queries: int


@dataclass(frozen=True)
class IndexInfo:
    """Describe an index.

    Attributes:
        metric: ``cosine``, ``euclidean`` or ``dot``.
        dim: Dimension of the vectors.
        num_parts: Number of parts with a visibility.
        fingerprint: Of model, metric and preprocessing.
        weights: Path of the model's weights.
        gallery: Folder of the images.
        generation: Number of the file of vectors.
        rows: Rows of that file that belong to the index, including removed ones.
        serial: Of the latest approximation.
        approximation: None if every search is exact.
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
    approximation: ApproximationInfo | None = None

    def to_json(self) -> str:
        """Return JSON for :meth:`from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> IndexInfo:
        """Read what :meth:`to_json` returned.

        Raises:
            ValueError, TypeError: The text is something else.
        """
        values = json.loads(text)
        inner = values.get("approximation")
        approximation = ApproximationInfo(**inner) if inner else None
        info = cls(**{**values, "approximation": approximation})
        _check_values(info)
        if info.metric not in METRICS or not info.dim:
            raise ValueError(f"metric {info.metric!r} in {info.dim} dimensions")
        if approximation:
            _check_values(approximation)
            if approximation.rows > info.rows:
                raise ValueError("the approximation covers more rows than there are")
        return info


def _check_values(record: Any) -> None:
    """Raise ValueError for a value of another type than annotated, or a negative number."""
    types = {"str": str, "int": int, "float": float}
    for field in fields(record):
        value, expected = getattr(record, field.name), types.get(str(field.type))
        wrong_type = expected is not None and type(value) is not expected
        if wrong_type or (isinstance(value, int | float) and not value >= 0):
            raise ValueError(f"{field.name} is {value!r}")
