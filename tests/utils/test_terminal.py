"""Names of files cannot steer the terminal."""

from __future__ import annotations

import io
import logging
import re
import sys

import numpy as np
import pytest

from occluded_reid.data.datasets.base import read_images
from occluded_reid.data.datasets.csv_table import read_image_rows
from occluded_reid.data.images import BrokenImage
from occluded_reid.data.prepare.doctor import _report
from occluded_reid.deploy.bulk import log_unreadable, require_all
from occluded_reid.deploy.feature_file import UnreadableImage, list_images
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


def test_names_do_not_start_lines(tmp_path, caplog) -> None:
    name = "7_c99\n[01] Rank-1 100.jpg"
    for file in (name, "some\n[01] notes.txt"):
        (tmp_path / file).touch()
    (tmp_path / "to\n[01] nowhere.jpg").symlink_to("nowhere")
    rows = f'"{name}",7,c,query\n"{name}",7,d,query\n'
    (tmp_path / "images.csv").write_text("path,identity,camera,split\n" + rows)
    found = list_images(tmp_path)
    unreadable = [UnreadableImage(position, "empty") for position in range(2)]
    log_unreadable(found, unreadable, "")
    said = [caplog.text, *_report([name], "files"), str(BrokenImage("empty", name))]
    for call in (
        lambda: require_all(found._replace(lost=[name]), []),
        lambda: read_images(tmp_path, re.compile(r"(\d+)_c(\d+)"), num_cameras=6),
        lambda: read_image_rows(tmp_path / "images.csv"),
    ):
        with pytest.raises(UserError) as error:
            call()
        said.append(str(error.value))
    assert all(r"\n[01]" in text and "\n[01]" not in text for text in said)


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
