"""Run a function in one process, in several that are started here, or in torchrun's."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from occluded_reid.compat import join_process_group
from occluded_reid.utils.errors import EXIT_CODE, LOST_RANK, UserError, explain, first_line

logger = logging.getLogger(__name__)

_SECONDS_FOR_THE_CAUSE = 5
"""A process that has lost another one waits so long for the parent, which names the other one."""
_SECONDS_FOR_TORCHRUN, _SECONDS_FOR_PROCESSES, _SECONDS_FOR_MACHINES = 10, 60, 300
"""So long a process waits for torchrun, for those of its machine, which start together, and of
others."""
_UNSET = "if this job was not started by torchrun, `unset TORCHELASTIC_RUN_ID`"


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
        local_rank, local_size = _read_torchruns_environment()
        _check_gpus(device, local_size, "--nproc-per-node")
        _join("env://", local_rank, local_size, device)
        main(*args)
        dist.destroy_process_group()
        return
    if not 0 <= machine_rank < machines:
        raise UserError(
            f"--machine-rank is {machine_rank}; with --num-machines {machines} it must be from 0 "
            f"to {machines - 1}"
        )
    world_size = machines * processes
    if world_size == 1:
        main(*args)
        return
    _check_gpus(device, processes, "--num-gpus")
    if machines > 1 and not re.fullmatch(r"tcp://[^/]+:\d{1,5}", url):
        raise UserError(f"--num-machines needs --dist-url tcp://HOST:PORT of machine 0, not {url}")
    if url == "auto":
        with socket.create_server(("127.0.0.1", 0)) as probe:  # a free port
            url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    group = (device, url, processes, world_size, machine_rank)
    reported = mp.get_context("spawn").Value("b", False)
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # of stopping others
    # the processes unblock Ctrl-C when they are ready to end of it without a traceback
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    job = mp.spawn(_run_spawned, (main, args, group, reported), processes, join=False)
    previous = signal.signal(signal.SIGTERM, lambda *_: _send(signal.SIGTERM, job.pids()))
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        while not job.join():
            pass
    except mp.ProcessExitedException as error:
        sys.exit(_report_exit(error))
    except KeyboardInterrupt:
        _send(signal.SIGKILL, job.pids())
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


def _read_torchruns_environment() -> tuple[int, int]:
    """Return this process's rank on its machine, and the number of processes there."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    try:
        rank, size, local_rank, local_size, _ = (int(os.environ[name]) for name in names)
        fits = 0 <= local_rank < local_size <= size and local_rank <= rank < size
    except (KeyError, ValueError):
        fits = False
    if not fits or not os.environ.get("MASTER_ADDR"):
        raise UserError(
            "the environment holds TORCHELASTIC_RUN_ID, as in a process that torchrun has started, "
            f"but not the rest of it (MASTER_ADDR, {', '.join(names)}); {_UNSET}"
        )
    return local_rank, local_size


def _join(url: str, local_rank: int, local_size: int, device: str, **ranks: int) -> None:
    """Join the process group; raise a UserError if the processes do not meet."""
    variables = os.environ if url == "env://" else {}
    where = "tcp://{MASTER_ADDR}:{MASTER_PORT}".format(**variables) if variables else url
    rank = ranks.get("rank", int(variables.get("RANK", 0)))
    size = ranks.get("world_size", int(variables.get("WORLD_SIZE", 1)))
    seconds = _SECONDS_FOR_PROCESSES if size == local_size else _SECONDS_FOR_MACHINES
    if size > local_size:
        logger.info(
            f"Rank {rank} of {size} waits up to {seconds} seconds for the others at {where}"
        )
    try:
        if variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # it is there before us
            _wait_for(where, _SECONDS_FOR_TORCHRUN)
        elif rank > 0:
            _wait_for(where, seconds)
        else:
            _check_port(where)
        on_cpu = device == "cpu"
        join_process_group(url, local_rank, local_size, on_cpu=on_cpu, seconds=seconds, **ranks)
    except (RuntimeError, ValueError, OSError) as error:
        reason = first_line(error)
        if getattr(error, "errno", None) == errno.EADDRINUSE or "EADDRINUSE" in reason:
            advice = "the port is taken: choose another one, or stop the program that uses it"
        else:
            advice = f"start all of them, with one address; {_UNSET}"
        raise UserError(
            f"the processes of this job cannot meet at {where} ({reason}); {advice}"
        ) from error


def _wait_for(url: str, seconds: float) -> None:
    """Wait until something listens at ``tcp://HOST:PORT``; PyTorch's own wait is a noisy one."""
    address, end = urlsplit(url), time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection((address.hostname, address.port), timeout=5).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def _check_port(url: str) -> None:
    """Raise an OSError if another program has the port; PyTorch would talk to it for minutes."""
    address = urlsplit(url)
    try:
        socket.create_server((address.hostname or "", address.port or 0)).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise  # else the address is a name that this machine does not know itself by


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


def _send(number: int, pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _run_spawned(local_rank: int, main: Any, args: Any, group: Any, reported: Any) -> None:
    """Run ``main(*args)`` as one of several processes; only the first error is printed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # PyTorch sends it too, if the parent has died
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    device, url, local_size, world_size, machine_rank = group
    # otherwise the data loaders' workers are spawned too, and each imports torch again
    mp.set_start_method("fork", force=True)
    ranks = {"rank": machine_rank * local_size + local_rank, "world_size": world_size}
    try:
        _join(url, local_rank, local_size, device, **ranks)
        main(*args)
    except Exception as error:
        message = explain(error)
        if not message:
            raise
        if message.startswith(LOST_RANK):
            time.sleep(_SECONDS_FOR_THE_CAUSE)
        with reported.get_lock():  # every process makes most mistakes
            if not reported.value:
                print(f"error: {message}", file=sys.stderr, flush=True)
            reported.value = True
        # tearing down gloo's threads while other ranks end can abort the process
        os._exit(EXIT_CODE)
    dist.destroy_process_group()
