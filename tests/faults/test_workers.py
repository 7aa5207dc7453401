"""Workers of the data loaders: who can stop them, and what happens when they hang."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ranks import has_ended
from runs import forked, status_of
from torch.utils.data import DataLoader, Dataset

from occluded_reid.data import workers
from occluded_reid.data.workers import build_worker_options, read_batches
from occluded_reid.utils.errors import UserError, explain


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
    for name in ("BATCH_TIMEOUT", "CHECK_INTERVAL"):
        monkeypatch.setattr(workers, name, 0.3)
    with pytest.raises(UserError, match="1 workers have read no batch in 0 seconds; check that"):
        list(read_batches(build_loader(lambda index: time.sleep(60 * index))))
    assert not multiprocessing.active_children()
    assert "in __getitem__" in capfd.readouterr().err


def test_a_killed_worker_is_one_message():
    def kill_yourself(index: int) -> None:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RuntimeError) as caught:
        list(read_batches(build_loader(kill_yourself)))
    assert "a worker of the data loader has ended" in explain(caught.value)
    assert "--resume" in explain(caught.value)


def test_a_mistake_found_by_a_worker_is_one_line():
    def complain(_: int) -> None:
        raise UserError("no patches in X")

    with pytest.raises(UserError) as caught:
        list(read_batches(build_loader(complain)))
    assert explain(caught.value) == "no patches in X"


class Tensors(Calls):
    """Items that cross to the parent in shared memory."""

    def __getitem__(self, index: int) -> torch.Tensor:
        super().__getitem__(index)
        return torch.zeros(100)


def shared_memory_is_full(*_: object) -> None:
    raise RuntimeError("unable to open shared memory object </torch_1> in read-write mode (28)")


def take_all_descriptors(index: int) -> None:
    if index == 0:
        limit = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (take_all_descriptors, "the limit on open files is reached: raise it"),
        (
            lambda _: setattr(torch.UntypedStorage, "_share_fd_cpu_", shared_memory_is_full),
            "shared memory (/dev/shm) or a disk is full",
        ),
    ],
)
def test_a_batch_that_cannot_be_sent_is_reported_at_once(work, message):
    """The parent used to wait ten minutes for it."""
    loader = DataLoader(Tensors(work), collate_fn=torch.stack, **build_worker_options(1))
    start = time.monotonic()
    with pytest.raises((OSError, RuntimeError)) as caught:
        list(read_batches(loader))
    assert message in explain(caught.value) and "DATALOADER.NUM_WORKERS 0" in explain(caught.value)
    assert time.monotonic() - start < 4


def test_workers_that_cannot_be_started_are_one_error(monkeypatch):
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    more: list[Any] = []
    monkeypatch.setattr(torch.multiprocessing, "Event", fail)
    monkeypatch.setattr(sys, "unraisablehook", more.append)
    with pytest.raises(OSError, match="No space left"):
        next(read_batches(build_loader(lambda _: None)))
    gc.collect()
    assert not more


def test_the_end_of_the_thread_that_pins_batches_is_noticed(monkeypatch):
    class Batches:
        _pin_memory, _pin_memory_thread = True, threading.Thread()  # not running

        def __next__(self) -> None:
            raise RuntimeError("DataLoader timed out after 5 seconds")

    monkeypatch.setattr(DataLoader, "__iter__", lambda _: Batches())
    with pytest.raises(RuntimeError) as caught:
        next(read_batches(build_loader(print)))
    assert "a worker of the data loader has ended" in explain(caught.value)


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
