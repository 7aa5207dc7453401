"""Lists and tables as users write them: marks, blanks, short and long rows, other encodings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from occluded_reid.utils.errors import UserError
from occluded_reid.utils.tables import Row, check_inside, clean_path, read_csv, read_list


def test_cells_are_stripped_and_rows_keep_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text('\ufeffa , b\n"1\n2", x \n\n3\n, ,\n4,5, \n', encoding="utf-8")
    table = read_csv(path, "the table", "write one")
    assert table.columns == ["a", "b"]
    assert table.rows == [
        Row(3, {"a": "1\n2", "b": "x"}),
        Row(5, {"a": "3", "b": ""}),
        Row(7, {"a": "4", "b": "5"}),
    ]
    table.require("b")
    with pytest.raises(UserError, match="has the columns a, b and 3 rows; it needs rows with c"):
        table.require("c")


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"a\n\xff",
        b'a\n"' + b"x" * 200_000,
        b'a\n"x',
        b"a\n\0",
        b"\xff\xfea",
        "folder",
        "pipe",
    ],
)
def test_a_file_that_is_no_table_is_named(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "table.csv"
    if isinstance(content, str):
        {"folder": os.mkdir, "pipe": os.mkfifo}[content](path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="cannot read the table .*; write one"):
        read_csv(path, "the table", "write one")


def test_a_table_without_rows_has_nothing_that_is_required(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("")
    with pytest.raises(UserError, match=r"has the columns \(none\) and 0 rows"):
        read_csv(tmp_path / "table.csv", "the table", "write one").require("a")


@pytest.mark.parametrize("delimiter", ",;\t")
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_tables_of_other_programs(tmp_path: Path, delimiter: str, encoding: str, end: str) -> None:
    lines = ["", "path,identity,", "b\\é:1.jpg,anna,", ",,"]
    text = end.join(lines).replace(",", delimiter)
    (tmp_path / "table.csv").write_bytes(text.encode(encoding))
    ((_, cells),) = read_csv(tmp_path / "table.csv", "the table", "write one").rows
    assert (cells["path"], cells["identity"]) == ("b\\é:1.jpg", "anna")
    (tmp_path / "list").write_bytes(f"{end} b\\é 1.jpg {end}{end}c".encode(encoding))
    assert read_list(tmp_path / "list") == ["b/é 1.jpg", "c"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("a,b\n1,2\n1,2,3", "line 3: there are more cells"), ("a,b, a\n1", "column a more than")],
)
def test_a_table_is_not_guessed_at(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_csv(tmp_path / "table.csv", "the table", "write one")


def test_one_spelling_of_each_path(tmp_path: Path) -> None:
    source = tmp_path / "list.txt"
    for name in ("a.jpg", "./a.jpg", "b/../a.jpg", "b\\..\\.//a.jpg", f"{tmp_path}/a.jpg"):
        assert check_inside(name, source) == "a.jpg", name
    for name in ("a:b.jpg", "...", "~", "..a/b", "CC:/a", " a"):
        assert check_inside(name, source) == name
    for name in ("..", "../a", "b/../../a", "/etc/a", "C:\\a", f"{tmp_path}2/a", "//a"):
        with pytest.raises(UserError, match="outside its own folder; move it"):
            check_inside(name, source, "move it")
    assert clean_path("..\\a.jpg") == "../a.jpg"
