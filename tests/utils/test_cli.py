"""Exit codes and the options that the commands share."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from occluded_reid.utils.cli import add_run_options, build_parser, positive_int, run_command
from occluded_reid.utils.errors import UserError


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("no folder X"), 2, "error: no folder X\n"),
        (ModuleNotFoundError("no fast-reid"), 2, "error: no fast-reid\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_a_mistake_is_one_message_and_an_exit_code(error, code, message, capsys) -> None:
    assert run_command(lambda: fail(error)) == code
    assert capsys.readouterr() == ("", message)
    with pytest.raises(type(error)):
        run_command(lambda: fail(error), debug=True)


class OutOfMemoryError(RuntimeError):
    """As torch's."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "the machine has run out of memory: lower SOLVER.IMS_PER_BATCH"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't "
            "allocate memory: you tried to allocate 9 bytes."), "the machine has run out of memory",
        ),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "the GPU has run out of"),
        (OSError(24, "Too many open files"), "ulimit -n"),
        (OSError(28, "No space left on device"), "/dev/shm"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "a worker of"),
        (
            RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:9"),
            "another process of the job has ended",
        ),
    ],
)  # fmt: skip
def test_a_failure_of_the_machine_is_one_message(error, words, capsys) -> None:
    assert run_command(lambda: fail(error)) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and words in message and message.count("\n") == 1
    with pytest.raises(type(error)):
        run_command(lambda: fail(error), debug=True)


def test_other_errors_pass() -> None:
    assert run_command(lambda: None) == 0
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 / 0)
    with pytest.raises(ConnectionResetError):  # of a download, say
        run_command(lambda: fail(ConnectionResetError("Connection reset by peer")))


def test_options_of_a_run() -> None:
    parser = build_parser(__doc__)
    add_run_options(parser)
    args = parser.parse_args([])
    assert (args.config_file, args.also, args.opts, args.dist_url) == ("", [], [], "auto")
    assert (args.num_gpus, args.num_machines, args.machine_rank) == (1, 1, 0)
    assert not (
        args.resume or args.eval_only or args.dry_run or args.debug or args.trust_checkpoint
    )
    words = [
        "--config-file",
        "a.yml",
        "--also",
        "b.yml",
        "--also",
        "c.yml",
        "--eval-only",
        "SEED",
        "1",
        "--resume",
    ]
    args = parser.parse_args(words)
    assert (args.config_file, args.also, args.eval_only) == ("a.yml", ["b.yml", "c.yml"], True)
    assert args.opts == ["SEED", "1", "--resume"] and not args.resume  # overrides come last


def test_positive_int() -> None:
    assert positive_int("3") == 3
    for text in ("0", "-1"):
        with pytest.raises(argparse.ArgumentTypeError, match="at least 1"):
            positive_int(text)


def test_a_closed_pipe_is_no_error() -> None:
    script = "from occluded_reid.utils.cli import run_command\n"
    script += "raise SystemExit(run_command(lambda: [print('x' * 99) for _ in range(9999)]))\n"
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


@pytest.mark.parametrize(
    ("number", "message"), [("0", "MODEL.DEVICE cpu does without"), ("-1", "got -1"), ("x", "'x'")]
)
def test_a_job_has_at_least_one_process(number: str, message: str, capsys) -> None:
    parser = build_parser(None)
    add_run_options(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--num-gpus", number])
    assert message in capsys.readouterr().err
