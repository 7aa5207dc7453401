"""One way to report a user's mistake: a sentence and exit code 2, never a traceback."""

from __future__ import annotations

EXIT_CODE = 2


class UserError(Exception):
    """A mistake that the user can mend.

    The message names the thing, says what was expected, and what to do.
    """
