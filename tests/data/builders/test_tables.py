"""CSV and TSV of captions."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

import pytest

from git_scale.data.builders.source_images import SourceRow
from git_scale.data.builders.tables import read_table
from git_scale.data.builders.writer import Skipped
from git_scale.errors import DataError


def table(tmp_path: Path, name: str, content: str) -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8"))
    return path


def test_lines_of_one_image_become_one_row(tmp_path: Path) -> None:
    path = table(
        tmp_path, "t.csv", 'image,caption\na.jpg,"red, and\ngreen"\nb.jpg,two\n\na.jpg,"say ""x"""\n'
    )
    assert read_table(path) == [
        SourceRow("a.jpg", ("red, and\ngreen", 'say "x"')),
        SourceRow("b.jpg", ("two",)),
    ]


def test_a_quote_in_a_tsv_is_a_character(tmp_path: Path) -> None:
    path = table(tmp_path, "t.tsv", 'id\ttitle\tfilepath\n1\t"half quote\ta.jpg\n2\ttwo\tb.jpg\n')
    assert read_table(path) == [SourceRow("a.jpg", ('"half quote',)), SourceRow("b.jpg", ("two",))]


@pytest.mark.parametrize("header", ["File,Text", "path,TITLE", "image_path, caption", "\ufefffile,caption"])
def test_columns_are_guessed_from_the_header(tmp_path: Path, header: str) -> None:
    assert read_table(table(tmp_path, "t.csv", f"{header}\na.jpg,one\n")) == [SourceRow("a.jpg", ("one",))]


def test_named_columns_win(tmp_path: Path) -> None:
    path = table(tmp_path, "t.csv", "file,caption,thumb,alt\na.jpg,one,b.jpg,two\n")
    assert read_table(path, "thumb", "alt") == [SourceRow("b.jpg", ("two",))]


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        (
            "t.csv",
            "a.jpg,A dog, brown, sits\n",
            r"line 3: 4 cells, but the header has 2: .* a comma stands in",
        ),
        ("t.csv", "a.jpg\n", "line 3: 1 cells, but the header has 2"),
        ("t.csv", 'a.jpg, "A dog, brown"\n', "line 3: 3 cells"),
        ("t.tsv", "a.jpg\tA dog\tbrown\n", "line 3: 3 cells, but the header has 2: .* a tab or a line break"),
        ("t.tsv", "a.jpg\n", "line 3: 1 cells"),
        ("t.tsv", 'a.jpg\t"half\nb.jpg\tA\ttab\n', "line 4: 3 cells"),
        ("t.tsv", "a.jpg\tA line\nbreak without quotes\n", "line 4: 1 cells"),
    ],
)
def test_a_line_with_other_cells_than_the_header_is_refused(
    tmp_path: Path, name: str, lines: str, message: str
) -> None:
    """What was beyond the second cell of "a.jpg,A dog, brown, sits" was dropped."""
    header = "file,caption\n0.jpg,zero\n".replace(",", "," if name.endswith("csv") else "\t")
    with pytest.raises(DataError, match=message):
        read_table(table(tmp_path, name, header + lines))


@pytest.mark.parametrize(("name", "delimiter"), [("t.csv", ","), ("t.tsv", "\t")])
def test_what_the_csv_module_writes_is_read_back(tmp_path: Path, name: str, delimiter: str) -> None:
    """As pandas does: quotes around cells that hold a quote, the delimiter or a line break."""
    draw = random.Random(0)
    pieces = ["a", "dog", " ", ",", "\t", '"', '""', "\n", "\r\n", "\u2028", "'", "\u00e9"]
    captions = ["", *("x" + "".join(draw.choices(pieces, k=draw.randrange(9))) for _ in range(200))]
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC):
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer, delimiter=delimiter, quoting=quoting, lineterminator="\n")
        writer.writerows([("file", "caption"), *((f"{n}.jpg", text) for n, text in enumerate(captions))])
        rows = read_table(table(tmp_path, name, buffer.getvalue()))
        assert [row.captions[0] for row in rows] == captions


@pytest.mark.parametrize(
    "caption",
    [
        '"half quote',
        'half quote"',
        'a 12" pizza',
        '"big" dog',
        'he says "sit"',
        '"Sit" and "stay"',
        '"',
        "'x'",
    ],
)
def test_a_stray_quote_in_a_tsv_stays(tmp_path: Path, caption: str) -> None:
    lines = "".join(f"{n}.jpg\t{caption}\n" for n in range(3))
    rows = read_table(table(tmp_path, "t.tsv", f"file\tcaption\n{lines}"))
    assert rows == [SourceRow(f"{n}.jpg", (caption,)) for n in range(3)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("name", "delimiter"), [("t.csv", ","), ("t.tsv", "\t")])
def test_all_line_ends_end_a_line_and_blank_lines_are_none(
    tmp_path: Path, name: str, delimiter: str, end: str
) -> None:
    lines = ["", f"file{delimiter}caption", "", f"a.jpg{delimiter}one", "  ", f"b.jpg{delimiter}two", ""]
    assert read_table(table(tmp_path, name, end.join(lines))) == [
        SourceRow("a.jpg", ("one",)),
        SourceRow("b.jpg", ("two",)),
    ]


def test_a_line_without_a_file_is_counted_and_two_spellings_are_one_file(tmp_path: Path) -> None:
    path = table(tmp_path, "t.csv", "file,caption\na.jpg,one\n,lost\n./a.jpg,two\nx//../a.jpg,three\n")
    assert read_table(path) == [
        Skipped("line 3", "no image named"),
        SourceRow("a.jpg", ("one", "two", "three")),
    ]


def test_a_column_that_stands_twice_is_refused_where_it_is_read(tmp_path: Path) -> None:
    for header in ("file,caption,caption", "file,File,caption"):
        with pytest.raises(DataError, match="stands 2 times in the header"):
            read_table(table(tmp_path, "t.csv", f"{header}\na.jpg,b.jpg,c\n"))
    path = table(tmp_path, "t.csv", "id,id,file,caption,File\n1,2,a.jpg,one,b.jpg\n")
    assert read_table(path, file_column="File") == [SourceRow("b.jpg", ("one",))]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t.csv",
            "url,caption\n",
            r"no column file or image or .* in the header \['url', 'caption'\]; .*--file-column",
        ),
        ("t.csv", "file,url\n", "--caption-column"),
        ("t.csv", "", r"t\.csv: it is empty; a table has a header"),
        ("t.tsv", " \n", r"t\.tsv: it is empty"),
        (
            "t.csv",
            "file;caption\na.jpg;A dog, brown\n",
            r"separated by semicolons, and a \.csv by commas; save it",
        ),
        (
            "t.csv",
            "file\tcaption\na.jpg\tA dog\n",
            r"separated by tabs, and a \.csv by commas; name it \.tsv",
        ),
        ("t.tsv", "file,caption\na.jpg,A dog\n", r"separated by commas, and a \.tsv by tabs; name it \.csv"),
        ("t.tsv", "file|caption\n", r"separated by vertical bars, and a \.tsv by tabs; save it"),
        (
            "t.csv",
            f"file,caption\na.jpg,one\nb.jpg,{'x' * 140_000}\n",
            r"t\.csv, line 3: a cell of more than 131,072",
        ),
        (
            "t.csv",
            'file,caption\na.jpg,"open\n' + "b.jpg,two\n" * 20_000,
            r"line 2: a cell of more than 131,072 characters; close the quote that was opened there, or cut",
        ),
        (
            "t.csv",
            'file,caption\na.jpg,"open\nb.jpg,two\n',
            r"t.csv, lines 2 to 3: unexpected end of data; mend",
        ),
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
    with pytest.raises(DataError, match=r"latin\.csv: not a readable table: line 2: byte 0xe9 is not UTF-8"):
        read_table(tmp_path / "latin.csv")
    (tmp_path / "wide.tsv").write_bytes("file\tcaption\na.jpg\tone\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"wide\.tsv: not a readable table: it is UTF-16"):
        read_table(tmp_path / "wide.tsv")
    (tmp_path / "zero.csv").write_bytes(b"file,caption\na.jpg,o\0ne\n")
    with pytest.raises(DataError, match=r"zero\.csv: not a readable table: line 2: a zero byte"):
        read_table(tmp_path / "zero.csv")


@pytest.mark.parametrize("columns", [("file", "file"), ("file", "FILE"), (None, "file"), ("caption", None)])
def test_one_column_is_not_both_file_and_caption(
    tmp_path: Path, columns: tuple[str | None, str | None]
) -> None:
    path = table(tmp_path, "t.csv", "file,caption\na.jpg,one\n")
    with pytest.raises(DataError, match=r"the column '(file|caption)' cannot hold both .* --caption-column"):
        read_table(path, *columns)
