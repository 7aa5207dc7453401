"""Names of files cannot steer the terminal."""

from __future__ import annotations

import io
import logging
import sys

import numpy as np
import pytest

from occluded_reid.utils.cli import run_command
from occluded_reid.utils.errors import IncompleteWork, UserError
from occluded_reid.utils.logs import setup_logging
from occluded_reid.utils.terminal import escape
from occluded_reid.visualization.sheet import Section, Tile, draw_sheet

NAME = "a\x1b[31m\r\u202e\x07\x9b\udcff.jpg"
SHOWN = r"a\x1b[31m\r\u202e\x07\x9b\udcff.jpg"


def test_only_control_characters_are_escaped() -> None:
    assert escape(NAME) == SHOWN == escape(SHOWN)
    assert escape("Ünï 日本 é.jpg\n\t") == "Ünï 日本 é.jpg\n\t"
    assert escape("two\nlines", keep="") == r"two\nlines"


@pytest.mark.parametrize("error", [UserError, IncompleteWork])
def test_commands_escape_what_they_say(error, capsys, tmp_path) -> None:
    def main() -> None:
        setup_logging(str(tmp_path))
        print(NAME)
        logging.getLogger("occluded_reid.terminal").warning(NAME)
        raise error(NAME)

    assert run_command(main) == error.exit_code
    out, err = capsys.readouterr()
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert (out.count(SHOWN), err.count(SHOWN), log.count(SHOWN)) == (2, 1, 1)
    assert all(c.isprintable() or c == "\n" for c in out + err + log)


def test_a_terminal_without_the_letters_shows_escapes(monkeypatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert run_command(lambda: print("日本.jpg")) == 0
    assert stream.buffer.getvalue() == b"\\u65e5\\u672c.jpg\n"


def test_a_figure_has_names_of_one_line() -> None:
    tile = Tile(np.zeros((2, 1, 3), np.uint8), ["a\nb"])
    assert (
        draw_sheet([Section("a\nb", [tile], 1)]).size
        == draw_sheet([Section(r"a\nb", [tile], 1)]).size
    )
