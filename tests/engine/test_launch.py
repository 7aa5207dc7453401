"""Starting several processes: environments, addresses and ends."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import has_ended, run_ranks
from runs import forked, status_of

from occluded_reid.engine import launch as launching
from occluded_reid.engine.launch import launch
from occluded_reid.utils.cli import run_command
from occluded_reid.utils.errors import UserError

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "7", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "RANK": "1",
    "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
}  # fmt: skip


def set_environment(monkeypatch: pytest.MonkeyPatch, **changes: str | None) -> None:
    for name, value in {**TORCHRUN, **changes}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "changes",
    [
        {"LOCAL_RANK": None}, {"MASTER_ADDR": None}, {"MASTER_PORT": "x"}, {"RANK": "2"},
        {"LOCAL_RANK": "-1"}, {"LOCAL_WORLD_SIZE": "3"},
    ],
)  # fmt: skip
def test_a_part_of_torchruns_environment_is_one_message(monkeypatch, changes):
    set_environment(monkeypatch, **changes)
    with pytest.raises(UserError, match="not started by torchrun, `unset TORCHELASTIC_RUN_ID`"):
        launch(print, device="cpu")


@pytest.mark.parametrize("agent", ["True", "False"])
def test_the_environment_of_a_torchrun_that_has_ended_is_one_message(monkeypatch, agent):
    monkeypatch.setattr(launching, "_SECONDS_FOR_TORCHRUN", 0)
    monkeypatch.setattr(launching, "_SECONDS_FOR_PROCESSES", 0)
    set_environment(monkeypatch, TORCHELASTIC_USE_AGENT_STORE=agent)
    with pytest.raises(UserError, match=r"cannot meet at tcp://127.0.0.1:1 \(.*refused\); start"):
        launch(print, device="cpu")


def test_a_taken_port_is_one_message(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        set_environment(monkeypatch, RANK="0", LOCAL_RANK="0", MASTER_PORT=str(port))
        with pytest.raises(UserError, match=rf"{port} \(.*in use.*; the port is taken: choose"):
            launch(print, device="cpu")


def test_processes_that_never_come_are_one_message(monkeypatch):
    monkeypatch.setattr(launching, "_SECONDS_FOR_PROCESSES", 0.5)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    set_environment(monkeypatch, RANK="0", LOCAL_RANK="0", MASTER_PORT=str(port))
    with pytest.raises(UserError, match=r"1/2 clients joined.*; start all of them"):
        launch(print, device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"machine_rank": 1}, "--machine-rank is 1; with --num-machines 1 it must be from 0 to 0"),
        ({"machines": 2, "machine_rank": -1}, "it must be from 0 to 1"),
        ({"machines": 2}, "--num-machines needs --dist-url tcp://HOST:PORT"),
        ({"machines": 2, "url": "host:29500"}, "of machine 0, not host:29500"),
    ],
)
def test_ranks_and_addresses_are_checked(options, message):
    with pytest.raises(UserError, match=message):
        launch(print, device="cpu", **options)


@pytest.mark.distributed
def test_a_process_that_dies_ends_the_wait_of_the_others_with_a_message(tmp_path):
    """As under torchrun on two machines: nobody else stops the second process."""

    def wait(rank: int) -> None:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.all_reduce(torch.ones(1))

    def rank(number: int) -> None:
        sys.stderr = (tmp_path / str(number)).open("w", buffering=1)
        os._exit(run_command(lambda: launch(wait, number, device="cpu")))

    assert run_ranks(2, rank) == [2, -signal.SIGKILL]
    message = (tmp_path / "0").read_text()
    assert "another process of the job has ended" in message and message.count("\n") == 1


def sleep(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(300)


def start_and_print(folder: Path) -> None:
    sys.stderr = (folder / "errors").open("w", buffering=1)
    os.dup2(sys.stderr.fileno(), 2)
    os._exit(run_command(lambda: launch(sleep, folder, device="cpu", processes=2)))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("ready", [False, True])
def test_ctrl_c_is_one_line_and_leaves_no_process(tmp_path, ready):
    """Whether they still import PyTorch or work already."""
    parent = forked(lambda: start_and_print(tmp_path))
    children: list[int] = []
    while len(children) < 3 or (ready and len(list(tmp_path.iterdir())) < 3):
        time.sleep(0.1)
        children = children_of(parent)  # two ranks, and what tracks their semaphores
    os.kill(parent, signal.SIGINT)
    assert status_of(parent) == 130
    assert (tmp_path / "errors").read_text() == "interrupted\n"
    assert all(has_ended(pid, within=10) for pid in children)


def children_of(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
