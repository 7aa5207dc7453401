"""What a training shows on the terminal, what only log.txt holds, and how often a line comes."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from runs import draw_market, tiny_cfg, train

from occluded_reid.engine import hooks
from occluded_reid.utils.logs import setup_logging


@pytest.fixture(autouse=True)
def market(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTREID_DATASETS", str(draw_market(tmp_path / "data")))


def test_the_terminal_shows_what_a_person_needs_and_the_file_everything(tmp_path, capsys):
    folder = tmp_path / "run"
    train(tiny_cfg(folder, "SOLVER.MAX_EPOCH", 2))
    terminal, log = capsys.readouterr().out, (folder / "log.txt").read_text()
    for text in (
        "WARNING", "| gallery  |       48 |            8 |         3 |",
        "SOLVER MAX_EPOCH 2, BASE_LR 0.01,", "HEADS.WITH_BNNECK True",
        "Model: Baseline with build_test_backbone, 1,568 parameters",
        "total_loss: ", "loss_triplet: ", "lr: ", "eta: 0:00:0", "time: ",
        "| Market1501 |", f"Wrote {folder}/results.json", f"{folder}/model_final.pth",
    ):  # fmt: skip
        assert text in terminal and text in log, text
    for text in ("Environment:", "numpy  ", "NUM_CLASSES: 0", "(cls_layer): Linear"):
        assert text in log and text not in terminal, text
    assert terminal.count("| gallery  |") == log.count("| gallery  |") == 1
    assert len(terminal.splitlines()) < 50 < len(log.splitlines()) / 5


def test_debug_messages_and_the_log_of_other_ranks_stay_off_the_terminal(
    tmp_path, capsys, monkeypatch
):
    logger = logging.getLogger("occluded_reid.example")
    setup_logging(str(tmp_path))
    logger.debug("many details")
    logger.error("one error")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    setup_logging(str(tmp_path))
    logger.info("of rank 1")
    terminal = capsys.readouterr().out
    assert terminal.count("\n") == 1 and terminal.endswith("] ERROR one error\n")
    assert "many details" in (tmp_path / "log.txt").read_text()
    assert "of rank 1" in (tmp_path / "log.txt.rank1").read_text()


@pytest.mark.parametrize(("on_terminal", "lines"), [(False, 12), (True, 4)])
def test_log_lines_come_by_time_too_and_metrics_by_iterations(
    tmp_path, capsys, monkeypatch, on_terminal, lines
):
    """A terminal has the progress bar instead. 12 iterations, a period of 5, 2 epochs."""
    rows = []
    for folder, seconds in ((tmp_path / "often", 0.0), (tmp_path / "seldom", 1e9)):
        monkeypatch.setattr(hooks, "SECONDS_BETWEEN_LINES", seconds)
        monkeypatch.setattr(hooks, "on_terminal", lambda: on_terminal)
        train(tiny_cfg(folder, "SOLVER.MAX_EPOCH", 2, "SOLVER.LOG_PERIOD", 5))
        written = map(json.loads, (folder / "metrics.json").read_text().splitlines())
        timings = ("time", "data_time", "eta_seconds")
        changing = (*timings, "run_id")
        rows.append([{**row, **{name: name in row for name in changing}} for row in written])
        count = (folder / "log.txt").read_text().count("epoch/iter: ")
        assert count == (4 if seconds else lines)
    assert rows[0] == rows[1] and len(rows[0]) == 4
