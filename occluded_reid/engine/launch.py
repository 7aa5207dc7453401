"""Start the processes of a run: one, several here, or those that torchrun has started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from multiprocessing.sharedctypes import Synchronized
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fastreid.utils import comm

from occluded_reid.utils.errors import EXIT_CODE, UserError


def launch(
    main: Callable[..., object],
    *args: Any,
    device: str,
    processes: int = 1,
    machines: int = 1,
    machine_rank: int = 0,
    url: str = "auto",
) -> None:
    """Run ``main(*args)`` in every process of the job.

    Under torchrun the processes exist and its environment says who is who. Else ``processes`` are
    spawned on this machine. GPUs talk over NCCL, CPUs over gloo.

    Args:
        main: a function at the top level of a module.
        device: ``cuda`` or ``cpu``.
        processes: processes on this machine.
        machines: machines in the job, each of which calls this.
        machine_rank: this machine's number from 0.
        url: where the processes meet, ``tcp://host:port``; ``auto`` on one machine.

    Raises:
        UserError: more processes than GPUs, or no meeting place for several machines.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        _require_gpus(device, local_size, "--nproc-per-node")
        _join(device, "env://", local_rank, local_size)
        main(*args)
        dist.destroy_process_group()
        return
    world_size = machines * processes
    if world_size == 1:
        main(*args)
        return
    _require_gpus(device, processes, "--num-gpus")
    if url == "auto":
        if machines > 1:
            raise UserError("--dist-url tcp://HOST:PORT of machine 0 is needed for --num-machines")
        url = f"tcp://127.0.0.1:{_free_port()}"
    place = (device, url, processes, world_size, machine_rank)
    told = mp.get_context("spawn").Value("b", False)
    job = mp.spawn(_spawned, args=(main, args, place, told), nprocs=processes, join=False)
    before = signal.signal(signal.SIGTERM, lambda *_: _pass_on_sigterm(job.pids()))
    try:
        while not job.join():
            pass
    except mp.ProcessExitedException as error:
        sys.exit(_code_of(error))
    finally:
        signal.signal(signal.SIGTERM, before)


def _require_gpus(device: str, processes: int, option: str) -> None:
    if device != "cpu" and processes > torch.cuda.device_count():
        raise UserError(
            f"{option} {processes}, but this machine has {torch.cuda.device_count()} GPUs; "
            "MODEL.DEVICE cpu runs as many processes as you like"
        )


def _code_of(error: mp.ProcessExitedException) -> int:
    """The command's exit code after one of its processes has failed; a kill is reported."""
    if error.exit_code > 0:
        return error.exit_code
    print(
        f"error: process {error.error_index} was ended by {error.signal_name}, the others were "
        "stopped; where nobody sent it, look whether the memory was full. --resume goes on from "
        "the last checkpoint",
        file=sys.stderr,
    )
    return 128 - error.exit_code


def _pass_on_sigterm(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _spawned(
    local_rank: int, main: Callable[..., object], args: Any, place: Any, told: Synchronized[bool]
) -> None:
    """Run ``main(*args)`` as one process of several, of which the first to fail says why."""
    device, url, local_size, world_size, machine_rank = place
    # workers of the data loaders would otherwise be spawned too, and import torch again each
    mp.set_start_method("fork", force=True)
    rank = machine_rank * local_size + local_rank
    try:
        _join(device, url, local_rank, local_size, rank=rank, world_size=world_size)
        main(*args)
    except UserError as error:
        with told.get_lock():  # most mistakes are met by every process
            if not told.value:
                print(f"error: {error}", file=sys.stderr, flush=True)
            told.value = True
        # at once: tearing gloo's threads down beside other ranks that end can abort the process
        os._exit(EXIT_CODE)
    dist.destroy_process_group()


def _join(device: str, url: str, local_rank: int, local_size: int, **ranks: Any) -> None:
    """Join the process group and tell fast-reid which ranks share this machine."""
    if device != "cpu":
        torch.cuda.set_device(local_rank)
    dist.init_process_group("gloo" if device == "cpu" else "nccl", init_method=url, **ranks)
    for first in range(0, dist.get_world_size(), local_size):
        group = dist.new_group(list(range(first, first + local_size)))
        if first <= dist.get_rank() < first + local_size:
            comm._LOCAL_PROCESS_GROUP = group
    comm.synchronize()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
