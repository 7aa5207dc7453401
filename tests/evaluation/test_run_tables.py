"""tools/compare.py --table: methods by seeds, differences with intervals, and the pages' tables."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from evaluation.test_comparison import QUERIES, write_run
from runs import load_tool

from occluded_reid.evaluation.bootstrap import bootstrap_difference, bootstrap_means
from occluded_reid.evaluation.run_tables import tabulate_runs
from occluded_reid.utils.errors import UserError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted([*ROOT.glob("projects/*/README.md"), *ROOT.glob("docs/*.md")])]
COMMAND = re.compile(
    r"<!-- tools/compare.py (--table.*?) -->\n\n((?:\|[^\n]*\n|\n(?=\|))+)", re.DOTALL
)
compare = load_tool("compare")


@pytest.fixture
def folders(tmp_path):
    """Two seeds of one method, three of another that is 0.1 better in each query, and a third."""
    precision = np.random.default_rng(0).uniform(0.1, 0.8, QUERIES).round(3)
    gains = {"plain_s1": 0, "plain_s2": 0.02, "fed_s1": 0.1, "fed_s2": 0.11, "fed_s3": 0.12}
    for seed, (name, gain) in enumerate(gains.items()):
        write_run(tmp_path / name, precision + gain, seed=seed)
    return [str(tmp_path / name) for name in gains]


def test_methods_are_grouped_by_name_and_summarized_over_seeds(folders, capsys):
    assert compare.command(["--table", *folders]) == 0
    table, differences = capsys.readouterr().out.split("\n\n")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[0] == ["Method", "Seeds", "Rank-1", "mAP"]
    means = [100 * np.random.default_rng(0).uniform(0.1, 0.8, QUERIES).round(3).mean() + gain
             for gain in (1, 11)]  # fmt: skip
    assert [row[:2] + row[3:] for row in rows[2:]] == [
        ["plain", "2", f"{means[0]:.1f} ± 1.4"], ["fed", "3", f"{means[1]:.1f} ± 1.0"],
    ]  # fmt: skip
    assert differences.startswith("| Difference to plain, 95 % interval")
    assert re.search(r"\| fed .*\| \+10\.0 \[\+8\.\d, \+11\.\d\] ", differences)


def test_columns_and_names(folders, tmp_path, capsys):
    words = ["--columns", "first=Rank-1", "Set/mINP", "--names", "A", "B & C", "--format"]
    assert compare.command(["--table", *folders, *words, "latex"]) == 0
    latex = capsys.readouterr().out
    assert latex.count(r"\begin{tabular}") == 2 and r"B \& C" in latex and "first" in latex
    file = tmp_path / "numbers.json"
    assert compare.command(["--table", *folders, *words, "csv", "--json", str(file)]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [(row["Method"], row["Seeds"], row["Column"]) for row in rows] == [
        ("A", "2", "first"), ("A", "2", "Set/mINP"), ("B & C", "3", "first"),
        ("B & C", "3", "Set/mINP"),
    ]  # fmt: skip
    assert rows[0]["difference value"] == "" and float(rows[2]["difference value"]) > 5
    content = json.loads(file.read_text())
    assert content["methods"]["A"]["first"]["mean"] == pytest.approx(float(rows[0]["mean"]))
    assert content["differences"]["B & C"]["first"].keys() == {"value", "low", "high"}


def test_one_run_has_its_interval_and_old_runs_no_differences(folders, tmp_path):
    for name in ("plain_s1", "fed_s1"):
        content = json.loads((tmp_path / name / "results.json").read_text())
        del content["data_sets"]["Set"]["per_query"]
        content["data_sets"]["Set"]["image_visibility"] = {"rank_correlation": -0.123}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    files = [str(tmp_path / f"{name}.json") for name in ("plain_s1", "fed_s1")]
    content["data_sets"]["Other"] = content["data_sets"]["Set"]
    (tmp_path / "fed_s1.json").write_text(json.dumps(content))
    table = tabulate_runs(files, columns=["mAP", "image_visibility/rank_correlation"])
    assert "Difference" not in table and table.endswith("Not in all runs, left out: Other")
    assert re.search(r"\| plain +\| 1 +\| \d\d\.\d \[\d\d\.\d, \d\d\.\d\] +\| -0.12 +\|", table)


def test_what_cannot_be_in_one_table_is_refused(folders, tmp_path):
    def refuse(match: str, *more: str, **options: list[str]) -> None:
        with pytest.raises(UserError, match=match):
            tabulate_runs([*folders, *more], **options)

    precision = np.full(QUERIES, 0.5)
    other = write_run(tmp_path / "other", precision, rules={"ties": "against"})
    refuse("different rules: ties is 'gallery_order' in", str(other))
    refuse("gallery is 900 in .* and 9", str(write_run(tmp_path / "small", precision, gallery=9)))
    refuse("have the same weights: they are one run", folders[0])
    refuse("a name of its own for each of 2 methods: plain, fed", names=["one"])
    refuse("a name of its own for each", names=["one", "one"])
    refuse("two columns are called mAP", columns=["mAP", "mAP=Rank-1"])
    refuse("no run has vertical/mAP of Set; in .* there is Rank-1,", columns=["vertical/mAP"])
    queries = write_run(tmp_path / "b", precision, names=[f"q/{n + 1}.jpg" for n in range(QUERIES)])
    refuse("different queries of Set", str(queries))


def test_difference_of_single_runs_is_the_paired_bootstrap():
    rng = np.random.default_rng(0)
    one, other = rng.uniform(0, 100, (2, 1, 300))
    expected = bootstrap_means({"mAP": (other - one)[0]})["mAP"]
    assert bootstrap_difference(one, other) == pytest.approx(expected)


def test_interval_covers_seeds_and_queries():
    """Of 40 pairs of methods that do not differ, about 95 % have 0 in their interval."""
    rng, covered, narrow = np.random.default_rng(1), 0, 0
    for _ in range(40):
        queries, seeds = rng.normal(50, 20, 400), rng.normal(0, 2, (2, 8, 1))
        one, other = queries + seeds + rng.normal(0, 10, (2, 8, 400))
        interval = bootstrap_difference(one, other)
        covered += interval.low <= 0 <= interval.high
        mean = bootstrap_means({"mAP": other.mean(0) - one.mean(0)})["mAP"]
        narrow += mean.low <= 0 <= mean.high
    assert covered >= 34 > 30 > narrow


def tables() -> list[tuple[str, str]]:
    found = [each for page in PAGES for each in COMMAND.findall(page.read_text(encoding="utf-8"))]
    assert len(found) >= 9
    return found


@pytest.mark.parametrize(("words", "table"), tables())
def test_a_page_shows_what_the_committed_results_give(words, table, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = []
    for word in shlex.split(words):
        files = sorted(map(str, Path().glob(word))) if "?" in word else []
        arguments += files or [word]
    assert compare.command(arguments) == 0
    assert capsys.readouterr().out == table
