"""Tests of projects/train_rows.py: which rows are trained, and where their results go."""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest

from occluded_reid.utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
ROWS = """
output: results
common: DATASETS.NAMES "('MarketSplit',)"
rows:
  npo: --config-file npo.yml
  full: --config-file full.yml SOLVER.MAX_EPOCH 3
"""


@pytest.fixture
def rows(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("train_rows", ROOT / "projects/train_rows.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    Path("table.yml").write_text(ROWS)
    calls = []

    def run(words):
        calls.append(words[2:])
        folder = Path(words[-1])
        if "fails" in words:
            return SimpleNamespace(returncode=2)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(f'"{folder.name}"')
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(module.subprocess, "run", run)
    return lambda **options: (
        module.main(Namespace(rows=Path("table.yml"), **{"seeds": [1], "only": [], **options}))
        or calls
    )


def test_rows_are_trained_with_one_seed_after_the_other(rows):
    calls = rows(seeds=[1, 2])
    assert [call[-1].split("/")[-1] for call in calls] == ["npo_s1", "full_s1", "npo_s2", "full_s2"]
    assert calls[1][:4] == ["--config-file", "full.yml", "SOLVER.MAX_EPOCH", "3"]
    assert calls[1][4:-2] == ["DATASETS.NAMES", "('MarketSplit',)", "SEED", "1"]
    assert Path("results/full_s2.json").read_text() == '"full_s2"'


def test_rows_with_results_are_passed_over(rows):
    Path("results").mkdir()
    Path("results/npo_s1.json").write_text("there")
    assert [call[-1] for call in rows()] == ["logs/table/full_s1"]
    assert Path("results/npo_s1.json").read_text() == "there"


def test_a_killed_row_is_resumed(rows):
    Path("logs/table/npo_s1").mkdir(parents=True)
    Path("logs/table/npo_s1/last_checkpoint").touch()
    assert rows(only=["npo"])[0][0] == "--resume"


def test_a_failed_training_leaves_no_result(rows):
    Path("table.yml").write_text(ROWS.replace("npo.yml", "npo.yml fails"))
    with pytest.raises(UserError, match="npo_s1 failed"):
        rows()
    assert not list(Path("results").iterdir())


def test_unknown_row_is_named(rows):
    with pytest.raises(UserError, match="no row nope; it has npo, full"):
        rows(only=["nope"])


def test_file_without_rows_is_one_message(rows):
    Path("table.yml").write_text("output: results\n")
    with pytest.raises(UserError, match="cannot read table.yml .*'rows'.*output, common and rows"):
        rows()
