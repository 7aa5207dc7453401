"""Compare runs: paired differences of two, mean and standard deviation of several seeds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from occluded_reid.evaluation.bootstrap import bootstrap_means
from occluded_reid.evaluation.ranking import Ranking
from occluded_reid.evaluation.results import (
    AGAIN,
    COUNTS,
    PerQuery,
    format_table,
    read_results,
    unpack_queries,
)
from occluded_reid.utils.errors import UserError
from occluded_reid.utils.files import write_json
from occluded_reid.utils.terminal import show

RULES = {"protocol": None, "ties": "gallery_order"}
"""Rules that results must share, and what held before reports named them; None is unknown."""


class Run(NamedTuple):
    """A results.json and its content."""

    path: Path
    content: dict[str, Any]

    @property
    def reports(self) -> dict[str, Any]:
        """The reports by test set."""
        return {show(name): report for name, report in self.content["data_sets"].items()}

    @property
    def name(self) -> str:
        """The name of its folder, or of a file that is not called results.json."""
        return self.path.stem if self.path.stem != "results" else self.path.absolute().parent.name

    def read_queries(self, name: str) -> PerQuery:
        """Return the results of each query of the test set ``name``."""
        if "per_query" not in self.reports[name]:
            raise UserError(f"{self.path} is of a version without per-query results; {AGAIN}")
        return unpack_queries(self.reports[name])


def compare_runs(paths: Sequence[str], *, seeds: bool = False, json_path: str = "") -> str:
    """Compare two runs, each a results.json or a folder; return the tables for a terminal.

    With ``seeds``, report mean and standard deviation of any number of runs instead of paired
    differences. The numbers are also written to ``json_path``, if there is one.

    >>> print(compare_runs(["logs/fed", "logs/aonet"]))
    """
    runs = [read_run(path) for path in paths]
    if not seeds and len(runs) != 2:
        raise UserError(f"expected two runs, got {len(runs)}; for several seeds add --seeds")
    metrics = compare_seeds(runs) if seeds else compare_pair(*runs)
    if json_path:
        seeds_of_runs = [run.content.get("seed") for run in runs]
        files = [str(run.path) for run in runs]
        write_json(json_path, {"runs": files, "seeds": seeds_of_runs, "data_sets": metrics})
    table = _format_seeds(runs, metrics) if seeds else _format_pair(runs, metrics)
    if skipped := sorted({name for run in runs for name in run.reports}.difference(metrics)):
        table += f"\n\nNot in all runs, left out: {', '.join(skipped)}"
    return table


def read_run(path: str | Path) -> Run:
    """Read a results.json, or the one in a run's folder."""
    file = Path(path)
    file = file / "results.json" if file.is_dir() else file
    return Run(file, read_results(file))


def compare_pair(a: Run, b: Run) -> dict[str, Any]:
    """Compare two runs query by query.

    Returns:
        By shared test set, by metric: ``a``, ``b`` and ``difference`` b - a in per cent (points),
        with the paired 95 % bootstrap interval ``low``, ``high`` over queries.
    """
    comparison = {}
    for name in list_shared([a, b]):
        metrics_a, metrics_b = (each.compute_metrics() for each in pair_queries(name, [a, b]))
        differences = {metric: metrics_b[metric] - metrics_a[metric] for metric in metrics_a}
        comparison[name] = {
            metric: {
                "a": float(metrics_a[metric].mean()),
                "b": float(metrics_b[metric].mean()),
                "difference": mean.value,
                "low": mean.low,
                "high": mean.high,
            }
            for metric, mean in bootstrap_means(differences).items()
        }
    return comparison


def compare_seeds(runs: Sequence[Run]) -> dict[str, Any]:
    """Return mean and standard deviation over runs that differ by their seed.

    Returns:
        By shared test set, by metric: ``mean``, ``std`` (of a sample: n - 1) and the runs'
        ``values``, in per cent.
    """
    if len(runs) < 2:
        raise UserError("a standard deviation needs at least two runs; one was given")
    require_different_weights(runs)
    comparison: dict[str, Any] = {}
    for name in list_shared(runs):
        comparison[name] = {}
        metrics = [run.reports[name]["metrics"] for run in runs]
        for metric in sorted(set(metrics[0]).intersection(*metrics), key=_by_number):
            values = [each[metric]["value"] for each in metrics]
            mean, std = float(np.mean(values)), float(np.std(values, ddof=1))
            comparison[name][metric] = {"mean": mean, "std": std, "values": values}
    return comparison


def require_different_weights(runs: Sequence[Run]) -> None:
    """Raise a UserError if two of the runs have the same weights."""
    paths: dict[str, Path] = {}
    for run in runs:
        weights = str(run.content.get("weights_sha256", run.path))
        if weights in paths:
            raise UserError(
                f"{run.path} and {paths[weights]} have the same weights: they are one run, not two"
            )
        paths[weights] = run.path


def _by_number(metric: str) -> tuple[str, int]:
    """Sort Rank-5 before Rank-10; the keys of a results file are in alphabetical order."""
    name, _, number = metric.partition("-")
    return name, int(number or 0)


def list_shared(runs: Sequence[Run]) -> list[str]:
    """List the test sets of all runs; one of a name must not differ in size, rules or images."""
    names = [name for name in runs[0].reports if all(name in run.reports for run in runs)]
    if not names:
        tested = "; ".join(f"{run.path}: {', '.join(run.reports) or 'none'}" for run in runs)
        raise UserError(f"the runs have no data set in common ({tested})")
    for name, run, (key, before) in itertools.product(names, runs[1:], RULES.items()):
        rules = [each.reports[name].get(key, before) for each in (runs[0], run)]
        if None not in rules and rules[0] != rules[1]:
            one, other = (str(rule)[:50] for rule in rules)
            raise UserError(
                f"{name} was evaluated by different rules: {key} is {one!r} in {runs[0].path} and "
                f"{other!r} in {run.path}; evaluate both by one"
            )
    for name, run, key in itertools.product(names, runs[1:], COUNTS):
        expected, count = (each.reports[name]["counts"][key] for each in (runs[0], run))
        if count != expected:
            raise UserError(
                f"{name} is not the same test set in both: {key} is {expected} in "
                f"{runs[0].path} and {count} in {run.path}; evaluate both on one set"
            )
    return names


def pair_queries(name: str, runs: Sequence[Run]) -> list[Ranking]:
    """Return the rankings of the test set ``name``, of the same queries in the same order."""
    first, *others = (run.read_queries(name) for run in runs)
    for run, other in zip(runs[1:], others, strict=True):
        fault = ""
        if other.names_sha256 != first.names_sha256:
            fault = f"different queries of {name}"
        elif not np.array_equal(first.ranking.positives, other.ranking.positives):
            fault = f"different galleries of {name} (other numbers of positives)"
        if fault:
            raise UserError(f"{runs[0].path} and {run.path} have {fault}; evaluate both on one set")
    return [each.ranking for each in (first, *others)]


def _format_pair(runs: Sequence[Run], comparison: dict[str, Any]) -> str:
    lines = [f"{letter}: {run.path}" for letter, run in zip("AB", runs, strict=True)]
    for name, metrics in comparison.items():
        rows = []
        for metric, each in metrics.items():
            interval = f"{each['difference']:+.1f} [{each['low']:+.1f}, {each['high']:+.1f}]"
            better = "B" if each["low"] > 0 else "A" if each["high"] < 0 else "-"
            rows.append([metric, f"{each['a']:.1f}", f"{each['b']:.1f}", interval, better])
        queries = runs[0].reports[name]["counts"]["queries"]
        lines += ["", f"{name}, {queries} queries, per cent", ""]
        lines.append(format_table(rows, ["Metric", "A", "B", "B - A [95 %]", "Better"]))
    lines += ["", "The interval is the paired bootstrap's over queries; it does not cover seeds."]
    return "\n".join(lines)


def _format_seeds(runs: Sequence[Run], comparison: dict[str, Any]) -> str:
    seeds = ", ".join(str(run.content.get("seed")) for run in runs)
    lines = [f"{len(runs)} runs, seeds {seeds}: mean, standard deviation, and each run"]
    for name, metrics in comparison.items():
        rows = [
            [metric, f"{each['mean']:.1f} +- {each['std']:.1f}"]
            + [f"{value:.1f}" for value in each["values"]]
            for metric, each in metrics.items()
        ]
        lines += ["", f"{name}, per cent", ""]
        headers = ["Metric", "Mean +- std", *(run.name for run in runs)]
        lines.append(format_table(rows, headers))
    return "\n".join(lines)
