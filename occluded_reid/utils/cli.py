"""What the commands share: a mistake becomes one message, and options have one name everywhere."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from occluded_reid.utils.errors import EXIT_CODE, UserError


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


def positive_int(text: str) -> int:
    """Parse an option that takes a whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value
