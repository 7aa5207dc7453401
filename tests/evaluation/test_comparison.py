"""tools/compare.py: paired differences, seeds, and the errors."""

from __future__ import annotations

import base64
import json
import zlib

import numpy as np
import pytest
from runs import load_tool
from written_results import QUERIES, write_run

from occluded_reid.evaluation.comparison import compare_pair, compare_seeds, read_run
from occluded_reid.evaluation.ranking import Ranking
from occluded_reid.evaluation.results import (
    pack_queries,
    report_queries,
    unpack_queries,
)
from occluded_reid.utils.errors import UserError

compare = load_tool("compare")


@pytest.fixture
def precision():
    return np.random.default_rng(0).uniform(0.1, 0.8, QUERIES).round(6)


def test_paired_intervals_are_narrow_if_queries_are_hard_for_both_runs(tmp_path, precision):
    noise = np.random.default_rng(1).normal(0.02, 0.05, QUERIES).round(6)
    one = read_run(write_run(tmp_path / "a", precision))
    other = read_run(write_run(tmp_path / "b", precision + noise))
    result = compare_pair(one, other)["Set"]["mAP"]
    assert result["a"] == pytest.approx(100 * precision.mean())
    assert result["b"] - result["a"] == pytest.approx(result["difference"])
    assert result["difference"] == pytest.approx(100 * noise.mean())
    # normal approximation of the *differences*, a quarter of the spread of the queries
    width = 392 * noise.std() / np.sqrt(QUERIES)
    assert result["high"] - result["low"] == pytest.approx(width, rel=0.1)
    assert result["low"] < result["difference"] < result["high"]
    back = compare_pair(other, one)["Set"]["mAP"]
    assert back["difference"] == pytest.approx(-result["difference"])


def test_queries_are_paired_by_name_in_any_order(tmp_path, precision):
    order = np.random.default_rng(2).permutation(QUERIES)
    one = read_run(write_run(tmp_path / "a", precision))
    names = [f"elsewhere/{n}.jpg" for n in order]
    other = read_run(write_run(tmp_path / "b", precision[order] + 0.01, names=names))
    result = compare_pair(one, other)["Set"]["mAP"]
    expected = {"difference": 1, "low": 1, "high": 1}
    assert {key: result[key] for key in expected} == pytest.approx(expected)


def test_runs_that_cannot_be_paired_are_refused(tmp_path, precision):
    one = read_run(write_run(tmp_path / "a", precision))

    def check_refused(match, *arguments, **options):
        folder = tmp_path / f"b{len(list(tmp_path.iterdir()))}"
        other = read_run(write_run(folder, *arguments, **options))
        with pytest.raises(UserError, match=match):
            compare_pair(one, other)

    names = [f"q/{n + 1}.jpg" for n in range(QUERIES)]
    check_refused("different queries of Set", precision, names=names)
    check_refused("queries is 200 in .* and 199 in", precision[1:])
    check_refused("gallery is 900 in .* and 899", precision, gallery=899)
    check_refused("different galleries of Set", precision, positives=4, positives_per_query=3.0)
    check_refused(
        "ties is 'gallery_order' in .* and 'against' in", precision, rules={"ties": "against"}
    )
    one.reports["Set"] |= {"protocol": "whole", "ties": "against"}
    crop = {"protocol": "crop", "ties": "against"}
    check_refused("protocol is 'whole' in .* and 'crop' in", precision, rules=crop)
    check_refused(r"in common .*Other\\n", precision, data_sets=("Other\n",))


def test_old_and_unrelated_files_are_named(tmp_path, precision):
    folder = write_run(tmp_path / "a", precision)
    run = read_run(folder / "results.json")
    del run.content["data_sets"]["Set"]["per_query"]
    (folder / "results.json").write_text(json.dumps(run.content))
    with pytest.raises(UserError, match="of a version without per-query results"):
        compare_pair(read_run(folder), read_run(folder))
    for text, match in (("{", "cannot read .*results.json"), ("[]", "has no data_sets")):
        (folder / "results.json").write_text(text)
        with pytest.raises(UserError, match=match):
            read_run(folder)
    with pytest.raises(UserError, match="folder of an evaluated run"):
        read_run(tmp_path / "nowhere")


def test_packed_queries_are_small_and_exact():
    rng = np.random.default_rng(0)
    positives, first = rng.integers(1, 30, 2210), rng.integers(1, 500, 2210)
    last = first + positives - 1 + rng.integers(0, 9000, 2210)
    precision = rng.uniform(0, 1, 2210)
    ranking = Ranking(np.arange(2210), positives, first, precision, positives / last)
    names = np.array([f"/root/{n:04d}_c1.jpg" for n in rng.permutation(2210)])
    packed = pack_queries(report_queries(names, ranking))
    assert len(json.dumps(packed)) < 12 * 2210  # of random numbers, which hardly compress
    counts = {"queries": 2215, "queries_without_positive": 5}
    again = unpack_queries({"per_query": packed, "counts": counts}).ranking
    order = np.argsort(names)
    np.testing.assert_allclose(again.average_precision, precision[order], atol=5e-7)
    for field in ("positives", "first_match", "inverse_negative_penalty"):
        assert (getattr(again, field) == getattr(ranking, field)[order]).all()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.ones((4, QUERIES - 1)), "has not four numbers for each of 200 queries"),
        (np.ones((4, 2**20)), "has not four numbers"),  # packed into a few bytes
        (np.zeros((4, QUERIES)), "has impossible values"),
        (np.full((4, QUERIES), 2_000_000), "has impossible values"),
    ],
)
def test_crafted_queries_are_refused(tmp_path, precision, values, told):
    folder = write_run(tmp_path / "a", precision)
    content = json.loads((folder / "results.json").read_text())
    packed = zlib.compress(values.astype("<i4").tobytes())
    content["data_sets"]["Set"]["per_query"]["values"] = base64.b64encode(packed).decode()
    (folder / "results.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"(?s)results.json .*{told}"):
        compare_pair(read_run(folder), read_run(folder))


@pytest.mark.parametrize(
    ("keys", "value", "match"),
    [
        (("data_sets", "Set"), 3, "TypeError"),
        (("data_sets", "Set", "counts"), {}, "KeyError: 'queries'"),
        (("data_sets", "Set", "counts", "gallery"), "many", "ValueError"),
        (("data_sets", "Set", "metrics"), [1], "AttributeError"),
        (("data_sets", "Set", "metrics", "mAP"), {}, "KeyError: 'value'"),
        (("data_sets", "Set", "per_query"), {}, "KeyError: 'values'"),
        (("data_sets", "Set", "per_query"), None, "TypeError"),
        (("data_sets", "Set", "per_query", "values"), "AAAA", "error: Error -3"),
        (("data_sets", "Set", "counts", "queries"), 10**30, "ValueError: per_query is of"),
        (("data_sets", "Set", "metrics", "mAP", "value"), float("nan"), "ValueError: value in mAP"),
        (("data_sets", "Set", "metrics", "mAP", "value"), 10**400, "OverflowError"),
        (("data_sets", "Set", "metrics", "mAP", "value"), 100.1, "ValueError: mAP of Set is no pe"),
        (("data_sets", "\n"), {"metrics": {}, "counts": {"\n": ""}}, "KeyError"),
    ],
)
def test_an_edited_results_file_is_named(tmp_path, precision, keys, value, match, capsys):
    folder = write_run(tmp_path / "a", precision)
    content = node = json.loads((folder / "results.json").read_text())
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    (folder / "results.json").write_text(json.dumps(content))
    for words in ([str(folder)] * 2, ["--seeds", *[str(folder)] * 2]):
        assert compare.command(words) == 2
        error = capsys.readouterr().err
        assert f"{folder / 'results.json'} is not as an evaluation writes it ({match}" in error


def test_runs_of_different_versions_share_test_sets_and_metrics(tmp_path, precision):
    one, other = (write_run(tmp_path / name, precision, seed=1) for name in "ab")
    content = json.loads((other / "results.json").read_text())
    del content["data_sets"]["Set"]["metrics"]["mINP"]
    (other / "results.json").write_text(json.dumps(content))
    assert "mINP" not in compare_seeds([read_run(one), read_run(other)])["Set"]


def test_seeds_by_hand(tmp_path):
    values = (0.2, 0.4, 0.9)
    runs = [
        read_run(write_run(tmp_path / str(n), np.full(5, value), seed=n))
        for n, value in enumerate(values)
    ]
    result = compare_seeds(runs)["Set"]["mAP"]
    assert result["mean"] == pytest.approx(50)
    assert result["std"] == pytest.approx(np.sqrt((30**2 + 10**2 + 40**2) / 2))
    assert result["values"] == pytest.approx([20, 40, 90])
    with pytest.raises(UserError, match="at least two runs"):
        compare_seeds(runs[:1])
    with pytest.raises(UserError, match="they are one run, not two"):
        compare_seeds([runs[0], runs[1], runs[0]])
    other = read_run(write_run(tmp_path / "other", np.full(4, 0.5)))
    with pytest.raises(UserError, match="queries is 5 in"):
        compare_seeds([*runs, other])


def test_command_prints_tables_and_writes_numbers(tmp_path, precision, capsys):
    one = write_run(tmp_path / "first", precision, data_sets=("Set", "Only:here"))
    other = write_run(tmp_path / "second", precision + 0.1, seed=1)
    file = tmp_path / "new" / "numbers.json"
    assert compare.command([str(one), str(other), "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "+10.0 [+10.0, +10.0]" in printed
    assert printed.endswith("\nNot in all runs, left out: Only:here\n")
    assert "first" in printed and "200 queries" in printed
    content = json.loads(file.read_text())
    assert content["seeds"] == [0, 1] and content["data_sets"].keys() == {"Set"}
    assert content["data_sets"]["Set"]["mAP"]["difference"] == pytest.approx(10)

    assert compare.command(["--seeds", str(one), str(other)]) == 0
    printed = capsys.readouterr().out
    mean = 100 * precision.mean() + 5
    assert f"{mean:.1f} +- {10 / np.sqrt(2):.1f}" in printed and "seeds 0, 1" in printed
    rows = [line.split()[1] for line in printed.splitlines() if line.startswith("| ")]
    assert rows == ["Metric", "Rank-1", "Rank-3", "Rank-5", "Rank-10", "mAP", "mINP"]

    assert compare.command([str(one)]) == 2
    assert "expected two runs, got 1" in capsys.readouterr().err
