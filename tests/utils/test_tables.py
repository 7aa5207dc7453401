"""CSV files as users write them: marks, blanks, short and long rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from occluded_reid.utils.errors import UserError
from occluded_reid.utils.tables import Row, read_csv


def test_cells_are_stripped_and_rows_keep_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text('\ufeffa , b\n"1\n2", x \n\n3\n4,5,6\n', encoding="utf-8")
    table = read_csv(path, "the table", "write one")
    assert table.columns == ["a", "b"]
    assert table.rows == [
        Row(3, {"a": "1\n2", "b": "x"}, surplus=False),
        Row(5, {"a": "3", "b": ""}, surplus=False),
        Row(6, {"a": "4", "b": "5"}, surplus=True),
    ]
    table.require("b")
    with pytest.raises(UserError, match="has the columns a, b and 3 rows; it needs rows with c"):
        table.require("c")


@pytest.mark.parametrize("content", [None, b"a\n\xff", b'a\n"' + b"x" * 200_000])
def test_a_file_that_is_no_table_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "table.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="cannot read the table .*; write one"):
        read_csv(path, "the table", "write one")


def test_a_table_without_rows_has_nothing_that_is_required(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("")
    with pytest.raises(UserError, match=r"has the columns \(none\) and 0 rows"):
        read_csv(tmp_path / "table.csv", "the table", "write one").require("a")
