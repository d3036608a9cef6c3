"""CSV and TSV of captions."""

from __future__ import annotations

from pathlib import Path

import pytest

from git_scale.data.builders.pictures import Row
from git_scale.data.builders.tables import read_table
from git_scale.errors import DataError


def table(tmp_path: Path, name: str, content: str) -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8"))
    return path


def test_lines_of_one_picture_become_one_row(tmp_path: Path) -> None:
    path = table(
        tmp_path, "t.csv", 'image,caption\na.jpg,"red, and\ngreen"\nb.jpg,two\n\na.jpg,"say ""x"""\n'
    )
    assert read_table(path) == [Row("a.jpg", ("red, and\ngreen", 'say "x"')), Row("b.jpg", ("two",))]


def test_a_quote_in_a_tsv_is_a_character(tmp_path: Path) -> None:
    path = table(tmp_path, "t.tsv", 'id\ttitle\tfilepath\n1\t"half quote\ta.jpg\n2\ttwo\tb.jpg\n')
    assert read_table(path) == [Row("a.jpg", ('"half quote',)), Row("b.jpg", ("two",))]


@pytest.mark.parametrize("header", ["File,Text", "path,TITLE", "image_path, caption", "\ufefffile,caption"])
def test_columns_are_guessed_from_the_header(tmp_path: Path, header: str) -> None:
    assert read_table(table(tmp_path, "t.csv", f"{header}\na.jpg,one\n")) == [Row("a.jpg", ("one",))]


def test_named_columns_win(tmp_path: Path) -> None:
    path = table(tmp_path, "t.csv", "file,caption,thumb,alt\na.jpg,one,b.jpg,two\n")
    assert read_table(path, "thumb", "alt") == [Row("b.jpg", ("two",))]


def test_short_lines_have_empty_cells(tmp_path: Path) -> None:
    assert read_table(table(tmp_path, "t.csv", "file,caption\na.jpg\n")) == [Row("a.jpg", ("",))]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t.csv",
            "url,caption\n",
            r"no column file or image or .* in the header \['url', 'caption'\]; .*--file-column",
        ),
        ("t.csv", "file,url\n", "--caption-column"),
        ("t.csv", "", r"in the header \[\]"),
        ("t.csv", 'file,caption\na.jpg,"open\nb.jpg,two\n', r"t.csv, line 3: unexpected end of data; mend"),
        ("t.txt", "file,caption\n", "a .csv"),
    ],
)
def test_unusable_tables_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(table(tmp_path, name, content))


def test_unreadable_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv: not a readable table"):
        read_table(tmp_path / "gone.csv")
    (tmp_path / "latin.csv").write_bytes("file,caption\na.jpg,caf\xe9\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.csv: not a readable table: 'utf-8'"):
        read_table(tmp_path / "latin.csv")
