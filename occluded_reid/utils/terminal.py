"""What a terminal may show: text, and not the control characters that names of files can hold."""

from __future__ import annotations

from typing import Any, TextIO


def escape(text: str, keep: str = "\n\t") -> str:
    r"""Return ``text`` with its control characters as escapes, but for those in ``keep``.

    So are marks that turn the direction of writing, and bytes of a name that are not UTF-8.

    >>> print(escape("red\x1b[31m.jpg"))
    red\x1b[31m.jpg
    """
    if text.isprintable():
        return text
    characters = (c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)
    return "".join(characters)


def show(name: object) -> str:
    r"""Return the name of a file, or another text from outside, as one line of a message.

    >>> print(show("two\nlines.jpg"))
    two\nlines.jpg
    """
    return escape(str(name), keep="")


class EscapedStream:
    """A text stream that escapes what is written to it, also what its encoding does not have."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write ``text``; see :func:`escape`."""
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(escape(text).encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
