"""How a user's mistake is reported: one message and exit code 2, no traceback."""

from __future__ import annotations

import contextlib
import csv
import difflib
from collections.abc import Iterable, Iterator

EXIT_CODE = 2


class UserError(Exception):
    """A mistake that the user can correct: what is wrong, what was expected, and what to do."""


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
        raise UserError(f"cannot read {thing} ({reason}); {advice}") from error
