"""Runs side by side: paired differences of two, mean and deviation of several seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from occluded_reid.evaluation.bootstrap import intervals, measures
from occluded_reid.evaluation.per_query import PerQuery, read_per_query
from occluded_reid.evaluation.ranking import Ranking
from occluded_reid.utils.errors import UserError

COUNTS = ("queries", "queries_without_positive", "gallery", "positives_per_query")
"""What is the same in two evaluations of one test set."""

AGAIN = "evaluate it again: tools/train_net.py --eval-only"


class Run(NamedTuple):
    """A results file.

    Attributes:
        path: of the file.
        content: what it holds.
    """

    path: Path
    content: dict[str, Any]

    @property
    def reports(self) -> dict[str, Any]:
        """The report of each data set and protocol."""
        return self.content["data_sets"]

    def per_query(self) -> dict[str, PerQuery]:
        """Read the values of each query, by data set and protocol.

        Raises:
            UserError: they were not kept.
        """
        if "per_query" not in self.content:
            raise UserError(
                f"{self.path} was written before the values of each query were kept; {AGAIN}"
            )
        kept = self.content["per_query"]
        found = read_per_query(self.path.parent / kept["file"], kept["sha256"])
        if missing := sorted(set(self.reports).difference(found)):
            raise UserError(f"{kept['file']} beside {self.path} lacks {missing[0]}; {AGAIN}")
        return found


def read_run(path: str | Path) -> Run:
    """Read a results.json, or that of a run's folder.

    Raises:
        UserError: it is missing or not a results file.
    """
    file = Path(path)
    file = file / "results.json" if file.is_dir() else file
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read {file} ({error.strerror}); expected a results.json or the folder of a "
            "run that has been evaluated"
        ) from error
    except ValueError as error:
        raise UserError(f"{file} is no results file ({error}); {AGAIN}") from error
    if not isinstance(content, dict) or not isinstance(content.get("data_sets"), dict):
        raise UserError(f"{file} is no results file: it has no data_sets; {AGAIN}")
    try:
        _look_up_everything(content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} is not as an evaluation writes it ({type(error).__name__}: {error}); {AGAIN}"
        ) from error
    return Run(file, content)


def _look_up_everything(content: dict[str, Any]) -> None:
    """Look up what the comparisons read, so that a file that lacks it fails here."""
    for report in content["data_sets"].values():
        for key in COUNTS:
            float(report["counts"][key])
        for metric in report["metrics"].values():
            float(metric["value"])
    if "per_query" in content:
        Path(content["per_query"]["file"], content["per_query"]["sha256"])


def compare_pair(one: Run, other: Run) -> dict[str, Any]:
    """Compare two runs query by query.

    Returns:
        By data set that both have, by metric: ``a``, ``b`` and ``difference`` b - a in per cent
        (points), with the paired bootstrap's 95 % interval ``low``, ``high`` over queries.

    Raises:
        UserError: no data set in common, or other queries or another gallery under one name.
    """
    found = {}
    names = _shared([one, other])
    first, second = one.per_query(), other.per_query()
    for name in names:
        _check_same_counts(name, [one, other])
        ours = measures(first[name].ranking)
        theirs = measures(_paired(name, first[name], second[name], [one, other]))
        differences = intervals({metric: theirs[metric] - ours[metric] for metric in ours})
        found[name] = {
            metric: {
                "a": float(ours[metric].mean()),
                "b": float(theirs[metric].mean()),
                "difference": each.value,
                "low": each.low,
                "high": each.high,
            }
            for metric, each in differences.items()
        }
    return found


def compare_seeds(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the mean and the standard deviation over runs that differ by their seed.

    Returns:
        By data set that all have, by metric: ``mean``, ``std`` (of a sample: n - 1) and the runs'
        ``values``, in per cent.

    Raises:
        UserError: fewer than two runs, one of them twice, no data set in common, or other queries
            or another gallery under one name.
    """
    if len(runs) < 2:
        raise UserError("a standard deviation needs two runs or more; one was given")
    _check_different(runs)
    found: dict[str, Any] = {}
    for name in _shared(runs):
        _check_same_counts(name, runs)
        found[name] = {}
        metrics = [run.reports[name]["metrics"] for run in runs]
        for metric in sorted(set(metrics[0]).intersection(*metrics), key=_by_number):
            values = [each[metric]["value"] for each in metrics]
            found[name][metric] = {
                "mean": float(np.mean(values)),
                "std": float(np.std(values, ddof=1)),
                "values": values,
            }
    return found


def _by_number(metric: str) -> tuple[str, int]:
    """Rank-5 before Rank-10: a results file has its keys in the order of letters."""
    name, _, number = metric.partition("-")
    return name, int(number or 0)


def left_out(runs: Sequence[Run]) -> list[str]:
    """Return the data sets that only some of the runs have."""
    everything = {name for run in runs for name in run.reports}
    return sorted(everything.difference(_shared(runs)))


def _shared(runs: Sequence[Run]) -> list[str]:
    names = [name for name in runs[0].reports if all(name in run.reports for run in runs)]
    if not names:
        tested = "; ".join(f"{run.path}: {', '.join(run.reports) or 'none'}" for run in runs)
        raise UserError(f"the runs have no data set in common ({tested})")
    return names


def _check_different(runs: Sequence[Run]) -> None:
    seen: dict[str, Path] = {}
    for run in runs:
        weights = str(run.content.get("weights_sha256", run.path))
        if weights in seen:
            raise UserError(
                f"{run.path} and {seen[weights]} have the same weights: they are one run, not two"
            )
        seen[weights] = run.path


def _check_same_counts(name: str, runs: Sequence[Run]) -> None:
    """The same name does not make the same test set: sizes, protocols and broken images differ."""
    expected: Mapping[str, Any] = runs[0].reports[name]["counts"]
    for run in runs[1:]:
        counts = run.reports[name]["counts"]
        for key in COUNTS:
            if counts[key] != expected[key]:
                raise UserError(
                    f"{name} is not the same test set in both: {key} is {expected[key]} in "
                    f"{runs[0].path} and {counts[key]} in {run.path}; evaluate both on one set"
                )


def _paired(name: str, one: PerQuery, other: PerQuery, runs: Sequence[Run]) -> Ranking:
    """Return the other run's ranking in the first run's order of queries."""
    place = {query: number for number, query in enumerate(other.names)}
    missing = [query for query in one.names if query not in place]
    if missing or len(one.names) != len(other.names):
        raise UserError(
            f"{runs[0].path} and {runs[1].path} have other queries of {name}, such as "
            f"{(missing or other.names)[0]}: their results cannot be paired"
        )
    order = np.array([place[query] for query in one.names])
    ranking = Ranking(*(values[order] for values in other.ranking))
    if not np.array_equal(one.ranking.positives, ranking.positives):
        raise UserError(
            f"{runs[0].path} and {runs[1].path} have another gallery of {name}: queries have more "
            "right answers in one of them; evaluate both on one set"
        )
    return ranking
