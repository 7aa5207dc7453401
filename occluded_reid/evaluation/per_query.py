"""per_query.npz: how each query fared, so that two runs can be compared query by query.

Shapes: V valid queries.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from occluded_reid.evaluation.ranking import Ranking
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import whole_file

FILE = "per_query.npz"


class PerQuery(NamedTuple):
    """The ranking of each valid query, by its name.

    Attributes:
        names: (V,) image paths below the folder that all queries of the data set share.
        ranking: the V queries' results.
    """

    names: list[str]
    ranking: Ranking


def names_of(paths: np.ndarray) -> list[str]:
    """Return the paths below their common folder: the same on every machine."""
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [Path(os.path.relpath(path, common or None)).as_posix() for path in paths]


def per_query_report(paths: np.ndarray, ranking: Ranking) -> dict[str, list[Any]]:
    """Return what an evaluation's report holds of each valid query: plain lists of length V.

    Args:
        paths: (Q,) image paths of all queries.
        ranking: of V of them.
    """
    names = names_of(paths)
    found = {"names": [names[query] for query in ranking.query]}
    return found | {field: values.tolist() for field, values in ranking._asdict().items()}


def write_per_query(folder: Path, found: Mapping[str, Mapping[str, list[Any]]]) -> dict[str, str]:
    """Write ``folder/per_query.npz``; return its name and SHA-256 for results.json.

    Args:
        folder: where results.json will stand.
        found: by data set and protocol, what :func:`per_query_report` returned.
    """
    arrays: dict[str, Any] = {
        f"{data_set}/{field}": np.array(values)
        for data_set, fields in found.items()
        for field, values in fields.items()
    }
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    with whole_file(folder / FILE) as stream:
        stream.write(content.getvalue())
    return {"file": FILE, "sha256": hashlib.sha256(content.getvalue()).hexdigest()}


def read_per_query(path: Path, sha256: str) -> dict[str, PerQuery]:
    """Read what :func:`write_per_query` wrote, by data set.

    Raises:
        UserError: the file is missing or not the one that its results.json names.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}), which holds the values of each query; "
            "keep it beside its results.json, or evaluate again: tools/train_net.py --eval-only"
        ) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(
            f"{path} is not the file that results.json beside it was written with; "
            "evaluate again: tools/train_net.py --eval-only"
        )
    found = {}
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        for key in arrays.files:
            data_set, _, field = key.rpartition("/")
            if field == "names":
                fields = (arrays[f"{data_set}/{name}"] for name in Ranking._fields)
                found[data_set] = PerQuery(arrays[key].tolist(), Ranking(*fields))
    return found
