"""Runs that are told to end, and checkpoints that the disk has damaged."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fed.tiny import fed_run_cfg
from ranks import on_ranks
from runs import TINY, draw_market, final_states, forked, status_of, train
from test_train_net import LAUNCHED, REPOSITORY, words

from faults.kill import run_trials
from fed_plugin import hooks
from occluded_reid.engine.interruption import StopRequest
from occluded_reid.engine.step import TrainingStep
from occluded_reid.errors import UserError

STATEFUL = ("MODEL.EMA.ENABLED", True, "SOLVER.ACCUMULATE", 2)


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_market(tmp_path_factory.mktemp("market"))


@pytest.fixture(autouse=True)
def data_root(market: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTREID_DATASETS", str(market))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, market: Path) -> Path:
    """A run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    os.environ["FASTREID_DATASETS"] = str(market)
    assert exit_code(lambda: train(fed_run_cfg(folder, *STATEFUL))) == 0
    return folder


def assert_same_run(left: Path, right: Path) -> None:
    one, other = final_states(left), final_states(right)
    assert one.keys() == other.keys()
    for place, tensor in one.items():
        torch.testing.assert_close(tensor, other[place], rtol=0, atol=0, msg=place)


def sigterm_in(iteration: int, *, here: bool = True) -> None:
    """Let the trainings of this process get SIGTERM at the beginning of an iteration."""
    step = TrainingStep.run_step

    def run_step(self: Any) -> None:
        if self.iter == iteration and here:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self)

    TrainingStep.run_step = run_step


def exit_code(work: Callable[[], object]) -> int:
    """The code with which a process would end that does ``work``."""

    def leave() -> None:
        try:
            work()
        except SystemExit as error:
            os._exit(error.code)

    return status_of(forked(leave))


# 14 is not the last of the two iterations of its optimizer step; 11 is the last of its epoch
@pytest.mark.parametrize(("iteration", "steps"), [(14, 4), (11, 6)])
def test_sigterm_saves_in_the_middle_of_an_epoch_and_resume_goes_on_there(
    tmp_path, monkeypatch, whole, iteration, steps
):
    parts = tmp_path / "run"

    def until_sigterm() -> None:
        sigterm_in(iteration)
        train(fed_run_cfg(parts, *STATEFUL))

    assert exit_code(until_sigterm) == 143
    saved = torch.load(parts / "model_interrupted.pth", weights_only=False)
    assert (saved["epoch"], saved["begun"]["steps"]) == (iteration // 6 - 1, steps)
    assert (parts / "last_checkpoint").read_text() == "model_interrupted.pth"
    assert "--resume goes on there" in (parts / "log.txt").read_text()
    with monkeypatch.context() as context:
        context.setattr(hooks, "fill_memories", lambda *_: 1 / 0)  # the banks are kept
        assert exit_code(lambda: train(fed_run_cfg(parts, *STATEFUL), resume=True)) == 0
    assert_same_run(whole, parts)
    assert not (parts / "model_interrupted.pth").exists()


@pytest.mark.distributed
def test_sigterm_of_one_rank_stops_both_and_each_goes_on_with_its_own_state(tmp_path):
    whole, parts = (fed_run_cfg(tmp_path / name, *STATEFUL) for name in ("whole", "parts"))

    def until_sigterm(rank: int) -> None:
        sigterm_in(9, here=rank == 1)
        with pytest.raises(SystemExit, match="143"):
            train(parts)

    def go_on(rank: int) -> None:
        train(parts, resume=True)
        train(whole)

    on_ranks(2, until_sigterm)
    with pytest.raises(UserError, match="of 2 processes and cannot go on with 1"):
        train(parts, resume=True)
    on_ranks(2, go_on)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
@pytest.mark.distributed
def test_sigterm_to_the_command_reaches_the_processes_it_has_started(tmp_path, market):
    script, config, folder = tmp_path / "launched.py", tmp_path / "tiny.yml", tmp_path / "run"
    script.write_text(LAUNCHED.format(tools=str(REPOSITORY / "tools")))
    config.write_text(TINY)
    options = words(str(config), folder, "SOLVER.MAX_EPOCH", 10_000, "TEST.EVAL_PERIOD", 0)
    command = [sys.executable, str(script), "--num-gpus", "2", *options]
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, "FASTREID_DATASETS": str(market)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not (folder / "metrics.json").is_file():
            assert process.poll() is None
            time.sleep(0.1)
        process.terminate()
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors[-3000:]
    assert "Traceback" not in errors
    assert (folder / "last_checkpoint").read_text() == "model_interrupted.pth"
    assert (
        len(torch.load(folder / "model_interrupted.pth", weights_only=False)["begun"]["ranks"]) == 2
    )


def test_a_stop_is_noted_and_the_handler_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop.agreed(now=True)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked and not stop.agreed(now=False) and stop.agreed(now=True)
        assert stop.agreed(now=False)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_training_outside_of_the_main_thread_notes_nothing():
    seen = []

    def work() -> None:
        with StopRequest() as stop:
            seen.append(stop.agreed(now=True))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.mark.slow
def test_killed_at_random_moments_of_every_phase(tmp_path):
    """The first ten trials of tests/faults/kill.py."""
    assert run_trials(tmp_path, trials=10, seed=0).total() >= 10


def truncate(data: bytearray, chance: random.Random) -> bytearray:
    return data[: chance.randrange(len(data))]


def flip_a_bit_of_the_weights(data: bytearray, chance: random.Random) -> bytearray:
    # the largest storage of a tiny run fills this stretch of its file
    data[data.index(b"/data/0") + 200] ^= 1 << chance.randrange(8)
    return data


@pytest.mark.parametrize("harm", [truncate, flip_a_bit_of_the_weights])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, whole, harm):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    last = folder / "model_final.pth"
    last.write_bytes(harm(bytearray(last.read_bytes()), random.Random(1)))
    assert exit_code(lambda: train(fed_run_cfg(folder, *STATEFUL), resume=True)) == 0
    assert_same_run(whole, folder)
    log = (folder / "log.txt").read_text()
    assert "or is damaged" in log and "going on from the newest one" in log
    for path in folder.glob("model_*.pth"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="model_final.pth is no checkpoint or is damaged"):
        train(fed_run_cfg(folder, *STATEFUL), resume=True)
