"""How mistakes and failures of the machine are reported: one message, exit code 2, no traceback."""

from __future__ import annotations

import contextlib
import csv
import difflib
import re
from collections.abc import Iterable, Iterator

from occluded_reid.utils.terminal import show

EXIT_CODE = 2

_SMALLER = "lower SOLVER.IMS_PER_BATCH (training), TEST.IMS_PER_BATCH (evaluation) or --batch-size"
_NO_WORKERS = "DATALOADER.NUM_WORKERS 0 (--workers 0) does without workers"
_RESUME = "--resume continues a training from its last checkpoint"

LOST_RANK = "another process of the job has ended or cannot be reached; its own message says why"

# what libraries write when the machine fails them, and what to tell the user; the first one counts
_MACHINE_FAILURES = (
    (
        r"shared memory ?\(shm\)|shared memory limit|</torch_|No space left on device",
        "shared memory (/dev/shm) or a disk is full: enlarge it (docker run --shm-size 8g); "
        + _NO_WORKERS,
    ),
    (
        r"Too many open files|received \d+ items of ancdata",
        f"the limit on open files is reached: raise it (ulimit -n 65536); {_NO_WORKERS}",
    ),
    (
        r"CUDA out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDA error: out of memory",
        f"the GPU has run out of memory: {_SMALLER}, or set MODEL.BACKBONE.RECOMPUTE True "
        "(transformers); nvidia-smi shows what else uses the GPU",
    ),
    (
        r"MemoryError|[Cc]an(no|')t allocate memory|not enough memory|bad_alloc|allocate \d+ bytes",
        f"the machine has run out of memory: {_SMALLER}, or DATALOADER.NUM_WORKERS (--workers)",
    ),
    (
        r"can't start new thread|Resource temporarily unavailable",
        f"the limit on processes and threads is reached: raise it (ulimit -u); {_NO_WORKERS}",
    ),
    (
        r"DataLoader worker .*(is killed by signal|exited unexpectedly)",
        "a worker of the data loader has ended. If nobody stopped it, the machine may have run out "
        f"of memory: lower DATALOADER.NUM_WORKERS (--workers). {_RESUME}",
    ),
    (
        r"^(Runtime|Dist\w+)Error: .*(Connection (was )?(likely )?(closed|reset|refused)|[Ss]ocket|"
        r"Broken pipe|[Tt]imed out waiting|[Ww]ait timeout|NCCL)",
        f"{LOST_RANK}. {_RESUME}",
    ),
)


class UserError(Exception):
    """A mistake that the user can correct: what is wrong, what was expected, and what to do."""

    exit_code = EXIT_CODE


class IncompleteWork(UserError):
    """The work is done, but for some files or folders that are left out."""

    exit_code = 1


def explain(error: BaseException) -> str:
    """Return the message if a user can mend it: a mistake, a failing machine, a missing package.

    It is ``""`` for another error.

    >>> explain(OSError(24, "Too many open files"))
    'the limit on open files is reached: raise it (ulimit -n 65536); ...'
    """
    if isinstance(error, (UserError, ModuleNotFoundError)):
        # one from a worker comes as the text of its traceback
        return str(error).rpartition("errors.UserError: ")[2].rstrip()
    lines = f"{type(error).__name__}: {error}".splitlines()
    for pattern, message in _MACHINE_FAILURES:
        if reasons := [line for line in lines if re.search(pattern, line)]:
            return f"{message} ({reasons[-1].strip()[:200]})"
    return ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or else its class."""
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__


def suggest(name: str, known: Iterable[str], *, count: int = 3) -> str:
    """Return a hint that names the ``known`` names closest to ``name``, in any case.

    The hint is appended to a message; it is ``""`` if no name is close.

    >>> suggest("solver.max_epoc", ["SOLVER.MAX_EPOCH", "SEED"])
    '; did you mean SOLVER.MAX_EPOCH?'
    """
    by_lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=count, cutoff=0.6)
    return f"; did you mean {' or '.join(by_lower[each] for each in close)}?" if close else ""


@contextlib.contextmanager
def explain_read_errors(
    thing: object,
    advice: str,
    errors: tuple[type[Exception], ...] = (OSError, ValueError, csv.Error),
) -> Iterator[None]:
    """Turn a failure to read a file into a :class:`UserError`.

    ``advice`` says what was expected, and what to do. ``errors`` is what reading may raise; the
    default is for text files.

    >>> with explain_read_errors("the list a.txt", "expected one name per line"):
    ...     open("a.txt").read()
    Traceback (most recent call last):
    UserError: cannot read the list a.txt (No such file or directory); expected one name per line
    """
    try:
        yield
    except errors as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise UserError(f"cannot read {show(thing)} ({reason}); {advice}") from error
