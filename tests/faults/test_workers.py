"""Workers of the data loaders: who can stop them, and what happens when they hang."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from ranks import has_ended
from runs import forked, status_of
from torch.utils.data import DataLoader, Dataset

from occluded_reid.data import workers
from occluded_reid.data.workers import build_worker_options, read_batches
from occluded_reid.utils.errors import UserError


class Calls(Dataset[int]):
    """Calls ``work(index)`` for each item; the item is the worker's process id."""

    def __init__(self, work: Callable[[int], object] = lambda _: None):
        self._work = work

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        self._work(index)
        return os.getpid()


def build_loader(work: Callable[[int], object], number: int = 1) -> DataLoader[Any]:
    return DataLoader(Calls(work), collate_fn=max, **build_worker_options(number))


def kill_from_another_process(number: int, pid: int) -> None:
    subprocess.run(["kill", f"-{number:d}", "--", str(pid)], check=True, start_new_session=True)


def test_a_worker_survives_the_signals_of_others_but_not_of_its_parent():
    batches = read_batches(build_loader(lambda _: time.sleep(0.02)))
    seen = [next(batches), next(batches)]
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGTERM, signal.SIGINT):
        kill_from_another_process(number, worker.pid)
    seen += [next(batches) for _ in range(5)]
    assert set(seen) == {worker.pid}
    worker.terminate()
    worker.join(20)
    assert worker.exitcode == 0


def test_a_worker_does_not_collect_its_parents_garbage(tmp_path):
    class Left:
        def __del__(self) -> None:
            (tmp_path / f"{os.getpid()}").touch()

    gc.disable()
    try:
        left = Left()
        left.itself = left
        del left
        pids = set(read_batches(build_loader(lambda _: gc.collect())))
        assert not list(tmp_path.iterdir())
    finally:
        gc.enable()
    gc.collect()
    assert [path.name for path in tmp_path.iterdir()] == [str(os.getpid())] and len(pids) == 1


def test_a_stuck_worker_is_reported_with_its_stack(monkeypatch, capfd):
    monkeypatch.setattr(workers, "BATCH_TIMEOUT", 0.3)
    with pytest.raises(UserError, match="1 workers have read no batch in 0 seconds; check that"):
        list(read_batches(build_loader(lambda index: time.sleep(60 * index))))
    assert not multiprocessing.active_children()
    assert "in __getitem__" in capfd.readouterr().err


@pytest.mark.slow
def test_workers_end_with_their_parent(tmp_path):
    """PyTorch's workers check every five seconds."""

    def read_and_wait() -> None:
        batches = read_batches(build_loader(lambda _: None, number=2))
        for pid in (next(batches), next(batches)):
            (tmp_path / str(pid)).touch()
        time.sleep(600)

    parent = forked(read_and_wait)
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.05)
    os.kill(parent, signal.SIGKILL)
    assert status_of(parent) == -signal.SIGKILL
    for path in tmp_path.iterdir():
        assert has_ended(int(path.name), within=30)
