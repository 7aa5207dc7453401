"""Files of others are opened without waiting and read within bounds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from occluded_reid.utils.files import open_regular, read_regular


def test_a_regular_file_is_read_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "link").symlink_to("a")
    assert read_regular(tmp_path / "a", 7) == b"content"
    with open_regular(tmp_path / "link") as stream:
        assert stream.read() == b"content"


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "missing", "large"])
def test_anything_else_is_an_error_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        path.write_bytes(bytes(101))
    with pytest.raises(OSError, match="it is no file|No such file|at most 100"):
        read_regular(path, 100)
