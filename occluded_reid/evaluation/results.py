"""Read and write results.json, and per_query.npz beside it.

results.json holds the reports, and what it takes to repeat them. per_query.npz holds the ranking of
each query, so that two runs can be compared query by query.

Shapes: Q queries, V of them valid.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import math
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from occluded_reid.evaluation.bootstrap import bootstrap_means
from occluded_reid.evaluation.ranking import Ranking
from occluded_reid.utils.errors import UserError, explain_read_errors
from occluded_reid.utils.files import (
    atomic_write,
    diagnose_zip,
    make_folder,
    read_json,
    read_regular,
    write_json,
)

if TYPE_CHECKING:
    from torch import nn

    from occluded_reid.config import CfgNode

PER_QUERY = "per_query.npz"
MAX_PER_QUERY = 2**28  # bytes, unpacked: of a million queries
COUNTS = ("queries", "queries_without_positive", "gallery", "positives_per_query")
"""Counts that agree between two evaluations of one test set."""
PACKAGES = ("torch", "torchvision", "fastreid", "timm", "numpy", "faiss-cpu")
MAJOR_METRICS = ("Rank-1", "mAP")
MINOR_METRICS = ("Rank-3", "Rank-5", "Rank-10", "mINP")  # shown without intervals
AGAIN = "evaluate it again: tools/train_net.py --eval-only"


class PerQuery(NamedTuple):
    """The ranking of each of V valid queries, and its name."""

    names: list[str]  # image paths below the common folder of all queries
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


def format_table(rows: list[list[Any]], headers: list[str]) -> str:
    """Return a Markdown table; numbers stay as they are written."""
    from tabulate import tabulate

    return tabulate(rows, headers, "pipe", disable_numparse=True)


def write_results(
    cfg: CfgNode, model: nn.Module, reports: Mapping[str, Any], *,
    seconds: float, epoch: int | None = None, missing: Iterable[str] = (), suffix: str = "",
    weights: str = "",
) -> Path:  # fmt: skip
    """Write results.json and per_query.npz into ``OUTPUT_DIR``; return the path of the former.

    Args:
        cfg: the run's configuration.
        model: the evaluated model, unwrapped.
        reports: by test set, as :meth:`Evaluator.evaluate` returns them.
        seconds: wall time of the evaluation.
        epoch: the last finished epoch, from 0; None outside training.
        missing: names of the test sets that are not on the disk.
        suffix: added to both names.
        weights: the file of the weights; ``""`` in training, which has not saved them yet.
    """
    from occluded_reid.checkpoint.checkpointer import weights_sha256

    path = make_folder(cfg.OUTPUT_DIR) / f"results{suffix}.json"
    per_query = {name: each["per_query"] for name, each in reports.items() if "per_query" in each}
    content = {
        "data_sets": {
            name: {key: value for key, value in report.items() if key != "per_query"}
            for name, report in reports.items()
        },
        "per_query": write_per_query(path.parent, per_query, suffix),
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


def write_per_query(
    folder: Path, queries: Mapping[str, Mapping[str, list[Any]]], suffix: str = ""
) -> dict[str, str]:
    """Write per_query.npz beside results.json; return its name and SHA-256.

    ``queries`` holds by test set what :func:`report_queries` returns. ``suffix`` ends the name.
    """
    arrays: dict[str, Any] = {
        f"{test_set}/{field}": np.array(values)
        for test_set, fields in queries.items()
        for field, values in fields.items()
    }
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    name = PER_QUERY.replace(".", f"{suffix}.")
    with atomic_write(folder / name) as stream:
        stream.write(content.getvalue())
    return {"file": name, "sha256": hashlib.sha256(content.getvalue()).hexdigest()}


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
        if "per_query" in content:
            file = content["per_query"]["file"]
            if Path(file).name != file or not file.endswith(".npz"):
                raise ValueError(f"per_query is no file beside it, such as {PER_QUERY}")
            bytes.fromhex(content["per_query"]["sha256"])
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not as an evaluation writes it ({type(error).__name__}: {error}); {AGAIN}"
        ) from error
    return content


def _require_numbers(entries: Mapping[str, Any], what: str, names: Iterable[str]) -> None:
    """Raise an error unless ``names`` are in ``entries``, whose values are finite numbers."""
    for name, value in {**entries, **{name: entries[name] for name in names}}.items():
        if not (isinstance(value, int | float) and math.isfinite(value)):
            raise ValueError(f"{name} in {what} is no number")


def read_per_query(path: Path, sha256: str) -> dict[str, PerQuery]:
    """Read what :func:`write_per_query` wrote, by test set; ``sha256`` is from its results.json."""
    advice = f"keep it beside its results.json, or {AGAIN}"
    with explain_read_errors(f"the results of each query {path}", advice):
        content = read_regular(path, MAX_PER_QUERY)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{path} does not belong to the results.json beside it; {AGAIN}")
    if fault := diagnose_zip(io.BytesIO(content), limit=MAX_PER_QUERY):
        raise UserError(f"{path} is damaged ({fault}); {AGAIN}")
    queries = {}
    with (
        explain_read_errors(path, AGAIN, (Exception,)),  # numpy raises almost anything
        np.load(io.BytesIO(content), allow_pickle=False) as arrays,
    ):
        for key in arrays.files:
            test_set, _, field = key.rpartition("/")
            if field == "names":
                columns = (arrays[f"{test_set}/{name}"] for name in Ranking._fields)
                queries[test_set] = PerQuery(arrays[key].tolist(), Ranking(*columns))
                _require_ranking(queries[test_set], arrays[key])
    return queries


def _require_ranking(query: PerQuery, names: np.ndarray) -> None:
    """Raise a ValueError unless each query has a name of its own and numbers that can be."""
    if names.ndim != 1 or names.dtype.kind != "U" or len(set(query.names)) != len(names):
        raise ValueError("the names of the queries are no list of different texts")
    for field, values in query.ranking._asdict().items():
        if values.shape != names.shape or values.dtype.kind not in "iuf":
            raise ValueError(f"{field} has not one number for each query")
        if not (np.isfinite(values) & (values >= 0)).all():
            raise ValueError(f"{field} has impossible values")
