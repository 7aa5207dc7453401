"""What the commands here take from their users alike."""

from __future__ import annotations

import argparse


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of every command that measures."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", default="", metavar="F", help="write the numbers to a file")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    return parser


def positive(word: str) -> float:
    """Read a number above 0; raises ``ValueError`` as argparse expects it."""
    number = float(word)
    if not 1e-9 < number < 1e9:
        raise ValueError
    return number


def whole(word: str) -> int:
    """Read a whole number of at least 1; raises likewise."""
    number = int(word)
    if number < 1:
        raise ValueError
    return number
