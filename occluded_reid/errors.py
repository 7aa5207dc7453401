"""One way to report a user's mistake: a sentence and exit code 2, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

EXIT_CODE = 2


class UserError(Exception):
    """A mistake that the user can mend.

    The message names the thing, says what was expected, and what to do.
    """


def run_command(main: Callable[[], object], *, debug: bool = False) -> int:
    """Run ``main`` and turn a :class:`UserError` into one message on stderr.

    Args:
        main: the command's body, called without arguments.
        debug: let the error pass with its traceback instead.

    Returns:
        The process's exit code: 0, 2 after a user's mistake, 130 after Ctrl-C.
    """
    try:
        main()
    except UserError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CODE
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted", file=sys.stderr)
        return 130
    return 0
