"""Read and write results.json.

It holds the reports, what it takes to repeat them, and the ranking of each query, packed, so that
two files can be compared query by query.

Shapes: Q queries, V of them valid.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.metadata
import math
import os
import platform
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from occluded_reid.evaluation.bootstrap import bootstrap_means
from occluded_reid.evaluation.ranking import Ranking
from occluded_reid.utils.errors import UserError, explain_read_errors
from occluded_reid.utils.files import make_folder, read_json, write_json
from occluded_reid.utils.terminal import show

if TYPE_CHECKING:
    from torch import nn

    from occluded_reid.config import CfgNode

MAX_QUERIES = 2**24  # of a test set that is read
PRECISION = 1_000_000  # of an average precision of 1
COUNTS = ("queries", "queries_without_positive", "gallery", "positives_per_query")
"""Counts that agree between two evaluations of one test set."""
PACKAGES = ("torch", "torchvision", "fastreid", "timm", "numpy", "faiss-cpu")
MAJOR_METRICS = ("Rank-1", "mAP")
MINOR_METRICS = ("Rank-3", "Rank-5", "Rank-10", "mINP")  # shown without intervals
AGAIN = "evaluate it again: tools/train_net.py --eval-only"


class PerQuery(NamedTuple):
    """The ranking of each of V valid queries, in the order of their names."""

    names_sha256: str  # of the image paths below the common folder of all queries
    ranking: Ranking


def summarize_ranking(ranking: Ranking) -> dict[str, dict[str, float]]:
    """Return Rank-1/3/5/10, mAP and mINP in per cent, each with its 95 % bootstrap interval."""
    means = bootstrap_means(ranking.compute_metrics())
    return {name: interval._asdict() for name, interval in means.items()}


def format_results(reports: Mapping[str, Any]) -> str:
    """Return a table with one row per report; :func:`testing.test` returns them by test set."""
    rows = []
    for name, report in reports.items():
        counts, metrics = report["counts"], report["metrics"]
        major = ["{value:.1f} [{low:.1f}, {high:.1f}]".format(**metrics[m]) for m in MAJOR_METRICS]
        minor = [f"{metrics[metric]['value']:.1f}" for metric in MINOR_METRICS]
        queries, unscored = counts["queries"], counts["queries_without_positive"]
        scored = f"{queries - unscored} of {queries}" if unscored else queries
        rows.append([name, scored, counts["gallery"], *major, *minor])
    intervals = [f"{metric} [95 %]" for metric in MAJOR_METRICS]
    return format_table(rows, ["Data set", "Queries scored", "Gallery", *intervals, *MINOR_METRICS])


def format_table(rows: list[list[Any]], headers: list[str], form: str = "pipe") -> str:
    """Return a table, Markdown's or another of tabulate's; numbers stay as they are written."""
    from tabulate import tabulate

    return tabulate(rows, headers, form, disable_numparse=True)


def write_results(
    cfg: CfgNode, model: nn.Module, reports: Mapping[str, Any], *,
    seconds: float, epoch: int | None = None, missing: Iterable[str] = (), suffix: str = "",
    weights: str = "",
) -> Path:  # fmt: skip
    """Write results.json into ``OUTPUT_DIR``; return its path.

    Args:
        cfg: the run's configuration.
        model: the evaluated model, unwrapped.
        reports: by test set, as :meth:`Evaluator.evaluate` returns them.
        seconds: wall time of the evaluation.
        epoch: the last finished epoch, from 0; None outside training.
        missing: names of the test sets that are not on the disk.
        suffix: added to its name.
        weights: the file of the weights; ``""`` in training, which has not saved them yet.
    """
    from occluded_reid.checkpoint.checkpointer import weights_sha256

    path = make_folder(cfg.OUTPUT_DIR) / f"results{suffix}.json"
    content = {
        "data_sets": {
            name: {
                key: pack_queries(value) if key == "per_query" else value
                for key, value in report.items()
            }
            for name, report in reports.items()
        },
        "missing": sorted(missing),
        "epoch": epoch,
        "run_id": cfg.RUN_ID,
        "weights": Path(weights).name,
        "seed": cfg.SEED,
        "config_sha256": hashlib.sha256(cfg.dump().encode()).hexdigest(),
        "weights_sha256": weights_sha256(model),
        "versions": {"python": platform.python_version(), **_list_versions()},
        "machine": _describe_machine(cfg.MODEL.DEVICE),
        "wall_time_s": round(seconds, 2),
    }
    write_json(path, content, sort_keys=True)
    return path


def are_results_of(path: Path, model: nn.Module) -> bool | None:
    """Whether the results.json at ``path`` is of the weights of ``model``; None if there is none.

    One that cannot be read, such as half a file, is none.
    """
    from occluded_reid.checkpoint.checkpointer import weights_sha256

    try:
        content = read_json(path)
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    return bool(content.get("weights_sha256") == weights_sha256(model))


def _describe_machine(device: str) -> dict[str, Any]:
    import torch

    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "device": device}
    if torch.device(device).type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(torch.device(device))
    return machine


def _list_versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def strip_common_folder(paths: np.ndarray) -> list[str]:
    """Return the paths below their common folder: the same names on every machine.

    >>> strip_common_folder(np.array(["/data/query/1/a.jpg", "/data/query/2/a.jpg"]))
    ['1/a.jpg', '2/a.jpg']
    """
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [Path(os.path.relpath(path, common or None)).as_posix() for path in paths]


def report_queries(paths: np.ndarray, ranking: Ranking) -> dict[str, list[Any]]:
    """Return the results of V valid queries as plain lists, for a report; ``paths`` is (Q,)."""
    names = strip_common_folder(paths)
    columns = {field: values.tolist() for field, values in ranking._asdict().items()}
    return {"names": [names[query] for query in ranking.query], **columns}


def pack_queries(queries: Mapping[str, list[Any]]) -> dict[str, str]:
    """Pack what :func:`report_queries` returns for results.json: some 10 bytes a query.

    In the order of the queries' names, of which a digest tells whether two runs have the same:
    number of positives, ranks of the first and the last, and average precision in millionths.
    """
    names = queries["names"]
    text = "\n".join(sorted(names))
    order = sorted(range(len(names)), key=names.__getitem__)
    ranking = {field: np.array(queries[field])[order] for field in Ranking._fields}
    rows = [
        ranking["positives"], ranking["first_match"],
        ranking["positives"] / ranking["inverse_negative_penalty"],
        ranking["average_precision"] * PRECISION,
    ]  # fmt: skip
    values = zlib.compress(np.rint(rows).astype("<i4").tobytes(), 9)
    return {
        "names_sha256": hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest(),
        "values": base64.b64encode(values).decode(),
    }


def unpack_queries(report: Mapping[str, Any]) -> PerQuery:
    """Return the results of the valid queries of a report in a results.json.

    Anything else than :func:`pack_queries` returns is a KeyError, TypeError, ValueError, or
    zlib.error.
    """
    packed, counts = report["per_query"], report["counts"]
    count = int(counts["queries"] - counts["queries_without_positive"])
    if not 0 <= count <= MAX_QUERIES:
        raise ValueError(f"per_query is of {count} queries")
    size = 4 * len(Ranking._fields[1:]) * count
    content = zlib.decompressobj().decompress(base64.b64decode(packed["values"]), size + 1)
    if len(content) != size:
        raise ValueError(f"per_query has not four numbers for each of {count} queries")
    positives, first, last, precision = np.frombuffer(content, "<i4").reshape(4, count)
    if not (
        (positives >= 1) & (first >= 1) & (last >= first + positives - 1)
        & (precision >= 0) & (precision <= PRECISION)
    ).all():  # fmt: skip
        raise ValueError("per_query has impossible values")
    ranking = Ranking(np.arange(count), positives, first, precision / PRECISION, positives / last)
    return PerQuery(str(packed["names_sha256"]), ranking)


def read_results(path: Path) -> dict[str, Any]:
    """Read a results.json; raise a UserError unless it is as :func:`write_results` writes it."""
    with explain_read_errors(path, "expected a results.json or the folder of an evaluated run"):
        content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("data_sets"), dict):
        raise UserError(f"{path} is no results file: it has no data_sets; {AGAIN}")
    try:
        for name, report in content["data_sets"].items():
            _require_numbers(report["counts"], f"counts of {name}", COUNTS)
            for metric, values in report["metrics"].items():
                _require_numbers(values, f"{metric} of {name}", ("value",))
                if not 0 <= values["value"] <= 100:
                    raise ValueError(f"{metric} of {name} is no percentage")
            if "per_query" in report:
                unpack_queries(report)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError, zlib.error) as error:
        raise UserError(
            f"{path} is not as an evaluation writes it ({type(error).__name__}: {show(error)}); "
            f"{AGAIN}"
        ) from error
    return content


def _require_numbers(entries: Mapping[str, Any], what: str, names: Iterable[str]) -> None:
    """Raise an error unless ``names`` are in ``entries``, whose values are finite numbers."""
    for name, value in {**entries, **{name: entries[name] for name in names}}.items():
        if not (isinstance(value, int | float) and math.isfinite(value)):
            raise ValueError(f"{name} in {what} is no number")
