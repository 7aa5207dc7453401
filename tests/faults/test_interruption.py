"""Runs that get SIGTERM, and checkpoints that the disk has damaged."""

from __future__ import annotations

import contextlib
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from documented import ROOT as REPOSITORY
from fed.tiny import fed_run_cfg
from ranks import has_ended, on_ranks
from runs import (
    LAUNCHED,
    TINY,
    assert_same_run,
    build_arguments,
    forked,
    status_of,
    train,
)

from faults.kill import run_trials
from fed_plugin import hooks
from occluded_reid.engine.defaults import prepare_run
from occluded_reid.engine.interruption import StopRequest
from occluded_reid.engine.train_step import TrainingStep
from occluded_reid.engine.trainer import Trainer
from occluded_reid.utils.errors import UserError

STATEFUL = ("MODEL.EMA.ENABLED", True, "SOLVER.ACCUMULATE", 2)


pytestmark = pytest.mark.usefixtures("data_root")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, market: Path) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    os.environ["FASTREID_DATASETS"] = str(market)
    assert exit_code(lambda: train(fed_run_cfg(folder, *STATEFUL))) == 0
    return folder


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def sigterm_to_the_group() -> None:
    """As Slurm sends it: from outside, to all processes."""
    group = f"-{os.getpgrp()}"
    subprocess.run(["kill", "-TERM", "--", group], check=True, start_new_session=True)


def call_in(iteration: int, call: Callable[[], object] = sigterm) -> None:
    """Make the trainings of this process call something when an iteration starts."""
    step = TrainingStep.run_step

    def run_step(self: Any) -> None:
        if self.iter == iteration:
            call()
        step(self)

    TrainingStep.run_step = run_step


def exit_code(work: Callable[[], object]) -> int:
    """Return the exit code of a process that does ``work``."""

    def leave() -> None:
        try:
            work()
        except SystemExit as error:
            os._exit(error.code)

    return status_of(forked(leave))


# 14 is not the last of the two iterations of its optimizer step; 11 is the last of its epoch
@pytest.mark.parametrize(("iteration", "steps"), [(14, 4), (11, 6)])
def test_sigterm_saves_in_the_middle_of_an_epoch_and_resume_continues_there(
    tmp_path, monkeypatch, whole, iteration, steps
):
    parts = tmp_path / "run"

    def until_sigterm() -> None:
        call_in(iteration)
        train(fed_run_cfg(parts, *STATEFUL))

    assert exit_code(until_sigterm) == 143
    saved = torch.load(parts / "model_interrupted.pth", weights_only=False)
    assert (saved["epoch"], saved["begun"]["steps"]) == (iteration // 6 - 1, steps)
    assert (parts / "last_checkpoint").read_text() == "model_interrupted.pth"
    assert "--resume continues there" in (parts / "log.txt").read_text()
    with monkeypatch.context() as context:
        context.setattr(hooks, "fill_memories", lambda *_: 1 / 0)  # the banks are kept
        assert exit_code(lambda: train(fed_run_cfg(parts, *STATEFUL), resume=True)) == 0
    assert_same_run(whole, parts)
    assert not (parts / "model_interrupted.pth").exists()


def test_sigterm_to_the_whole_group_stops_no_worker(tmp_path, whole):
    parts, workers = tmp_path / "run", ("DATALOADER.NUM_WORKERS", 2)

    def until_sigterm() -> None:
        os.setpgid(0, 0)
        call_in(14, sigterm_to_the_group)
        train(fed_run_cfg(parts, *STATEFUL, *workers))

    assert exit_code(until_sigterm) == 143
    assert exit_code(lambda: train(fed_run_cfg(parts, *STATEFUL, *workers), resume=True)) == 0
    assert_same_run(whole, parts)


def test_sigterm_saves_no_weights_whose_losses_are_not_finite(tmp_path, monkeypatch):
    """On a GPU they are read every LOG_PERIOD iterations; here never."""
    monkeypatch.setattr(TrainingStep, "reads_losses", False)
    monkeypatch.setattr(TrainingStep, "run_step", TrainingStep.run_step)  # restored after the test
    trainer = Trainer(prepare_run(fed_run_cfg(tmp_path / "run"), training=True))

    def break_the_weights() -> None:
        next(trainer.model.parameters()).data.fill_(math.nan)
        sigterm()

    call_in(3, break_the_weights)
    with pytest.raises(UserError, match="became nan at iteration 3"):
        trainer.train()
    assert not (tmp_path / "run" / "model_interrupted.pth").exists()


@pytest.mark.distributed
def test_sigterm_to_one_rank_stops_both_and_each_resumes_its_own_state(tmp_path):
    whole, parts = (fed_run_cfg(tmp_path / name, *STATEFUL) for name in ("whole", "parts"))

    def until_sigterm(rank: int) -> None:
        if rank == 1:
            call_in(9)
        with pytest.raises(SystemExit, match="143"):
            train(parts)

    def resume(rank: int) -> None:
        train(parts, resume=True)
        train(whole)

    on_ranks(2, until_sigterm)
    with pytest.raises(UserError, match="with 2 processes and cannot be resumed with 1"):
        train(parts, resume=True)
    on_ranks(2, resume)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@contextlib.contextmanager
def command_of_two_ranks(folder: Path, market: Path) -> Iterator[subprocess.Popen[str]]:
    """Start an endless training with ``--num-gpus 2`` in a process group of its own."""
    script, config, run = folder / "launched.py", folder / "tiny.yml", folder / "run"
    script.write_text(LAUNCHED.format(tools=str(REPOSITORY / "tools")))
    config.write_text(TINY)
    endless = ("SOLVER.MAX_EPOCH", 10_000, "TEST.EVAL_PERIOD", 0, "DATALOADER.NUM_WORKERS", 1)
    arguments = build_arguments(str(config), run, *endless)
    command = [sys.executable, str(script), "--num-gpus", "2", *arguments]
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests" / "helpers")])
    environment = {**os.environ, "PYTHONPATH": paths, "FASTREID_DATASETS": str(market)}
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            written = run / "metrics.json"  # created before signals are handled, filled after
            while not (written.is_file() and written.stat().st_size):
                assert process.poll() is None
                time.sleep(0.1)
            yield process
        finally:
            process.kill()


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ranks_of(command: int) -> list[int]:
    """Return the processes that train, without multiprocessing's resource tracker."""
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in children_of(command)}
    return [pid for pid, line in lines.items() if "--multiprocessing-fork" in line]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_sigterm_to_the_command_reaches_the_processes_it_has_started(tmp_path, market, send):
    """Also when all of them, and their workers, get it at once."""
    with command_of_two_ranks(tmp_path, market) as process:
        send(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors[-3000:]
    assert "Traceback" not in errors
    run = tmp_path / "run"
    assert (run / "last_checkpoint").read_text() == "model_interrupted.pth"
    saved = torch.load(run / "model_interrupted.pth", weights_only=False)
    assert len(saved["begun"]["ranks"]) == 2


@pytest.mark.slow
@pytest.mark.distributed
def test_a_rank_that_is_killed_ends_the_command_and_is_named(tmp_path, market):
    with command_of_two_ranks(tmp_path, market) as process:
        ranks = ranks_of(process.pid)
        workers = [pid for rank in ranks for pid in children_of(rank)]
        os.kill(ranks[1], signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 137 and len(ranks) == 2 and len(workers) == 2
    assert "error: process 1 was ended by SIGKILL, the others were stopped" in errors
    assert all(has_ended(pid, within=30) for pid in [*ranks, *workers])


def test_a_stop_is_recorded_and_the_handler_restored():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop.is_agreed(exchange=True)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested and not stop.is_agreed(exchange=False)
        assert stop.is_agreed(exchange=True) and stop.is_agreed(exchange=False)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_training_outside_the_main_thread_ignores_sigterm():
    seen = []

    def work() -> None:
        with StopRequest() as stop:
            seen.append(stop.is_agreed(exchange=True))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.mark.slow
def test_killed_at_random_moments_of_every_phase(tmp_path):
    """Run the first ten trials of tests/faults/kill.py."""
    assert run_trials(tmp_path, trials=10, seed=0).total() >= 10


def truncate(data: bytearray, rng: random.Random) -> bytearray:
    return data[: rng.randrange(len(data))]


def flip_a_bit_of_the_weights(data: bytearray, rng: random.Random) -> bytearray:
    # the largest storage of a tiny run fills this stretch of its file
    data[data.index(b"/data/0") + 200] ^= 1 << rng.randrange(8)
    return data


@pytest.mark.parametrize("damage", [truncate, flip_a_bit_of_the_weights])
def test_a_damaged_checkpoint_is_skipped(tmp_path, whole, damage):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    last = folder / "model_final.pth"
    last.write_bytes(damage(bytearray(last.read_bytes()), random.Random(1)))
    assert exit_code(lambda: train(fed_run_cfg(folder, *STATEFUL), resume=True)) == 0
    assert_same_run(whole, folder)
    log = (folder / "log.txt").read_text()
    assert "or is damaged" in log and "resuming from the newest readable checkpoint" in log
    for path in folder.glob("model_*.pth"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="model_final.pth is no checkpoint or is damaged"):
        train(fed_run_cfg(folder, *STATEFUL), resume=True)
