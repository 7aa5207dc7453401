"""Run a function in one process, in several that are started here, or in torchrun's."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from occluded_reid.compat import join_process_group
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

    Under torchrun the processes exist already, and its environment holds their ranks. Otherwise
    ``processes`` are spawned on this machine. GPUs communicate over NCCL, CPUs over gloo.

    Args:
        main: a function at the top level of a module.
        args: its arguments.
        device: ``cuda`` or ``cpu``.
        processes: on this machine.
        machines: in the job; each calls this function with its own ``machine_rank``.
        url: the address at which the processes meet, ``tcp://HOST:PORT``; on one machine ``auto``
            picks a free port.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        _check_gpus(device, local_size, "--nproc-per-node")
        join_process_group("env://", local_rank, local_size, on_cpu=device == "cpu")
        main(*args)
        dist.destroy_process_group()
        return
    world_size = machines * processes
    if world_size == 1:
        main(*args)
        return
    _check_gpus(device, processes, "--num-gpus")
    if url == "auto":
        if machines > 1:
            raise UserError("--num-machines needs --dist-url tcp://HOST:PORT of machine 0")
        with socket.create_server(("127.0.0.1", 0)) as probe:  # a free port
            url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    group = (device, url, processes, world_size, machine_rank)
    reported = mp.get_context("spawn").Value("b", False)
    job = mp.spawn(_run_spawned, (main, args, group, reported), processes, join=False)
    previous = signal.signal(signal.SIGTERM, lambda *_: _forward_sigterm(job.pids()))
    try:
        while not job.join():
            pass
    except mp.ProcessExitedException as error:
        sys.exit(_report_exit(error))
    finally:
        signal.signal(signal.SIGTERM, previous)


def _check_gpus(device: str, processes: int, option: str) -> None:
    if device != "cpu" and processes > torch.cuda.device_count():
        raise UserError(
            f"{option} {processes}, but this machine has {torch.cuda.device_count()} GPUs; "
            "MODEL.DEVICE cpu runs any number of processes"
        )


def _report_exit(error: mp.ProcessExitedException) -> int:
    """Return the command's exit code after a process failed; print which one, if it was killed."""
    if error.exit_code > 0:
        return error.exit_code
    print(
        f"error: process {error.error_index} was ended by {error.signal_name}, the others were "
        "stopped. If nobody sent the signal, the machine may have run out of memory. --resume "
        "continues from the last checkpoint",
        file=sys.stderr,
    )
    return 128 - error.exit_code


def _forward_sigterm(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _run_spawned(local_rank: int, main: Any, args: Any, group: Any, reported: Any) -> None:
    """Run ``main(*args)`` as one of several processes; only the first error is printed."""
    device, url, local_size, world_size, machine_rank = group
    # otherwise the data loaders' workers are spawned too, and each imports torch again
    mp.set_start_method("fork", force=True)
    ranks = {"rank": machine_rank * local_size + local_rank, "world_size": world_size}
    try:
        join_process_group(url, local_rank, local_size, on_cpu=device == "cpu", **ranks)
        main(*args)
    except UserError as error:
        with reported.get_lock():  # every process makes most mistakes
            if not reported.value:
                print(f"error: {error}", file=sys.stderr, flush=True)
            reported.value = True
        # tearing down gloo's threads while other ranks end can abort the process
        os._exit(EXIT_CODE)
    dist.destroy_process_group()
