"""Tables of methods: mean and spread over seeds, and paired differences to the first method."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from occluded_reid.evaluation.bootstrap import bootstrap_difference
from occluded_reid.evaluation.comparison import (
    Run,
    list_shared,
    pair_queries,
    read_run,
    require_different_weights,
)
from occluded_reid.evaluation.results import MAJOR_METRICS, format_table
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import write_json

TABLE_FORMS = {"markdown": "pipe", "latex": "latex_booktabs"}  # by their names in tabulate
SEED = re.compile(r"[-_]s(eed)?\d+$", re.IGNORECASE)  # at the end of a run's name


class Column(NamedTuple):
    """A number of a report: ``path`` is a metric, an occlusion and a metric, or its keys."""

    header: str
    test_set: str
    path: str

    def read(self, run: Run) -> tuple[float, ...] | None:
        """Return the value, with its interval if the report has one; None if it has no value."""
        report = run.reports[self.test_set]
        node: Any = {**report, **report.get("by_occlusion", {}), **report["metrics"]}
        for key in self.path.split("/"):
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node = tuple(node.get(key) for key in ("value", "low", "high"))
        values = node if isinstance(node, tuple) else (node,)
        numbers = all(isinstance(each, int | float) for each in values)
        return tuple(map(float, values)) if numbers else None


def tabulate_runs(
    paths: Sequence[str], *, columns: Sequence[str] = (), names: Sequence[str] = (),
    form: str = "markdown", json_path: str = "",
) -> str:  # fmt: skip
    """Return a table of methods, each with the runs that differ by their seed alone.

    The name of a run, without a seed at its end (``_s1``, ``-seed2``), is the name of its method.

    >>> print(tabulate_runs(["npo_s1.json", "npo_s2.json", "full_s1.json"]))  # doctest: +SKIP

    Args:
        paths: of results.json, or folders of runs.
        columns: ``[HEADER=][TEST SET/]PATH``; PATH is a metric (``mAP``), a metric by occlusion
            (``vertical/mAP``), or leads to another number of the report. By default Rank-1 and mAP
            of each test set that all runs share.
        names: of the methods, in their order.
        form: ``markdown``, ``latex`` or ``csv``.
        json_path: file to which the numbers are written too.
    """
    methods = _group_runs([read_run(path) for path in paths], names)
    runs = [run for of_method in methods.values() for run in of_method]
    shared = list_shared(runs)
    chosen = [_parse_column(word, shared) for word in columns] or [
        Column(f"{name} {metric}" if len(shared) > 1 else metric, name, metric)
        for name in shared
        for metric in MAJOR_METRICS
    ]
    headers = [column.header for column in chosen]
    if twice := [header for header in headers if headers.count(header) > 1]:
        raise UserError(f"two columns are called {twice[0]}; give one a header: NAME={twice[0]}")
    table = {
        name: {column.header: _summarize(column, of_method) for column in chosen}
        for name, of_method in methods.items()
    }
    for column in chosen:
        if all(row[column.header] is None for row in table.values()):
            known = ", ".join(runs[0].reports[column.test_set]["metrics"])
            raise UserError(
                f"no run has {column.path} of {column.test_set}; in {runs[0].path} there is {known}"
            )
    differences = _compare_with_first(methods, chosen)
    if json_path:
        write_json(json_path, {"methods": table, "differences": differences})
    text = _format(methods, headers, table, differences, form)
    left_out = sorted({name for run in runs for name in run.reports}.difference(shared))
    if left_out and form != "csv":
        text += f"\n\nNot in all runs, left out: {', '.join(left_out)}"
    return text


def _group_runs(runs: Sequence[Run], names: Sequence[str]) -> dict[str, list[Run]]:
    methods: dict[str, list[Run]] = {}
    for run in runs:
        methods.setdefault(SEED.sub("", run.name), []).append(run)
    for of_method in methods.values():
        require_different_weights(of_method)
    if names and (len(names) != len(methods) or len(set(names)) < len(names)):
        raise UserError(
            f"--names must have a name of its own for each of {len(methods)} methods: "
            + ", ".join(methods)
        )
    return dict(zip(names or methods, methods.values(), strict=True))


def _parse_column(word: str, shared: Sequence[str]) -> Column:
    header, _, spec = word.rpartition("=")
    test_set = next((name for name in shared if spec.startswith(f"{name}/")), "")
    if not test_set and len(shared) > 1:
        raise UserError(f"the column {word} names none of the test sets: {', '.join(shared)}")
    path = spec.removeprefix(f"{test_set}/") if test_set else spec
    return Column(header or spec, test_set or shared[0], path)


def _summarize(column: Column, runs: Sequence[Run]) -> dict[str, Any] | None:
    """Return mean and standard deviation (n - 1) of the runs, or the interval of the one."""
    read = [column.read(run) for run in runs]
    values = [each for each in read if each is not None]
    if not values:
        return None
    if len(values) < len(read):
        missing = runs[read.index(None)].path
        raise UserError(f"{missing} has no {column.path} of {column.test_set}; its seeds have")
    numbers = [value for value, *_ in values]
    if len(numbers) > 1:
        return {"mean": float(np.mean(numbers)), "std": float(np.std(numbers, ddof=1))}
    return dict(zip(("mean", "low", "high"), values[0], strict=False))


def _compare_with_first(
    methods: dict[str, list[Run]], columns: Sequence[Column]
) -> dict[str, dict[str, Any]]:
    """Return by method and column the difference to the first method, with its interval.

    Only of metrics that each query has; nothing if a run has no results of each query.
    """
    runs = [run for of_method in methods.values() for run in of_method]
    reports = [run.reports[column.test_set] for run in runs for column in columns]
    if len(methods) < 2 or not all("per_query" in report for report in reports):
        return {}
    differences: dict[str, dict[str, Any]] = {name: {} for name in list(methods)[1:]}
    metrics = {
        name: [ranking.compute_metrics() for ranking in pair_queries(name, runs)]
        for name in dict.fromkeys(column.test_set for column in columns)
    }
    for column in columns:
        by_run = iter(metrics[column.test_set])
        queries = [
            [next(by_run).get(column.path) for _ in of_method] for of_method in methods.values()
        ]
        if queries[0][0] is not None:
            first, *others = (np.stack(each) for each in queries)  # type: ignore[arg-type]
            for name, other in zip(differences, others, strict=True):
                differences[name][column.header] = bootstrap_difference(first, other)._asdict()
    return differences


def _format(
    methods: dict[str, list[Run]], headers: list[str], table: dict[str, Any],
    differences: dict[str, Any], form: str,
) -> str:  # fmt: skip
    headers = ["Method", "Seeds", *headers]
    if form == "csv":
        return _format_csv(methods, headers, table, differences)
    rows = [
        [name, len(runs), *(_format_cell(table[name][header]) for header in headers[2:])]
        for name, runs in methods.items()
    ]
    text = format_table(rows, headers, TABLE_FORMS[form])
    if differences:
        compared = [h for h in headers[2:] if h in next(iter(differences.values()))]
        rows = [
            [name, *("{value:+.1f} [{low:+.1f}, {high:+.1f}]".format(**row[h]) for h in compared)]
            for name, row in differences.items()
        ]
        title = f"Difference to {next(iter(methods))}, 95 % interval"
        text += "\n\n" + format_table(rows, [title, *compared], TABLE_FORMS[form])
    return text


def _format_cell(cell: dict[str, float] | None) -> str:
    if cell is None:
        return ""
    digits = 1 if abs(cell["mean"]) > 1 else 2  # per cent, or a share or correlation
    texts = {key: f"{value:.{digits}f}" for key, value in cell.items()}
    if "std" in texts:
        return f"{texts['mean']} ± {texts['std']}"
    return "{mean} [{low}, {high}]".format(**texts) if "low" in texts else texts["mean"]


def _format_csv(
    methods: dict[str, list[Run]], headers: list[str], table: dict[str, Any],
    differences: dict[str, Any],
) -> str:  # fmt: skip
    """Return one line per method and column: all numbers that there are."""
    stream = io.StringIO()
    keys = ("mean", "std", "low", "high")
    compared = ("value", "low", "high")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*headers[:2], "Column", *keys, *(f"difference {key}" for key in compared)])
    for name, runs in methods.items():
        for header in headers[2:]:
            cell, difference = table[name][header] or {}, differences.get(name, {}).get(header, {})
            numbers = [cell.get(key, "") for key in keys]
            numbers += [difference.get(key, "") for key in compared]
            writer.writerow([name, len(runs), header, *numbers])
    return stream.getvalue().rstrip("\n")
