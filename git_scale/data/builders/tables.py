"""Rows of a CSV or TSV file: one column names the image, one holds a caption; lines of one file are its captions.

A CSV is read by the rules of Python's csv module. A TSV is read line by line, and a quote is a character like any
other, unless a whole cell is quoted as the csv module writes it, inner quotes doubled. Where that does not give every
line the header's number of cells, the TSV is read as pandas writes it: quoted cells may hold tabs and line breaks.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from git_scale.data.builders.formats import CAPTIONS, AnnotationFormat, FormatOption
from git_scale.data.builders.source_images import SourceRow, gather
from git_scale.data.builders.writer import Skipped
from git_scale.errors import DataError
from git_scale.text_files import read_text

FILE_COLUMNS = ("file", "image", "filepath", "path", "image_path")
CAPTION_COLUMNS = ("caption", "text", "title")

_SEPARATORS = {"\t": "tabs", ";": "semicolons", "|": "vertical bars", ",": "commas"}
_QUOTED = re.compile(r'"([^"]*(?:""[^"]*)*)"')  # a cell as the csv module quotes it


class _Reader(Protocol):
    """What csv.reader() returns."""

    line_num: int

    def __iter__(self) -> Iterator[list[str]]: ...


Line = tuple[int, list[str]]
"""Number of a row's first line, and its cells."""


def read_table(
    path: Path, file_column: str | None = None, caption_column: str | None = None
) -> list[SourceRow | Skipped]:
    """One row per image, in order of first mention, with the captions of all its lines.

    Before them the lines that name no image. Columns that are not named are guessed from the header.
    Raises DataError for an unreadable table, a column that is not there, there twice or named for both, and a line
    with more or fewer cells than the header.
    """
    if path.suffix.lower() not in (".csv", ".tsv"):
        raise DataError(f"{path}: a table of captions is a .csv (commas) or a .tsv (tabs) file")
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable table: {error}") from None
    if not text.strip():
        raise DataError(f"{path}: it is empty; a table has a header and a line for each caption")
    _check_separator(path, text)
    lines = _read_tsv(path, text) if path.suffix.lower() == ".tsv" else _read_csv(path, text)
    header = [name.strip() for name in lines[0][1]]
    file_at = _find(path, header, file_column, FILE_COLUMNS, "--file-column")
    caption_at = _find(path, header, caption_column, CAPTION_COLUMNS, "--caption-column")
    if file_at == caption_at:
        raise DataError(
            f"{path}: the column {header[file_at]!r:.200} cannot hold both the file and the caption; name another"
            " with --file-column or --caption-column"
        )
    named = [(number, cells[file_at].strip(), cells[caption_at]) for number, cells in lines[1:]]
    nameless = [Skipped(f"line {number}", "no image named") for number, file, _ in named if not file]
    return [*nameless, *gather((file, caption) for _, file, caption in named if file)]


def _check_separator(path: Path, text: str) -> None:
    """Raises DataError where the header holds another separator than the one that the file's name stands for."""
    header = text.lstrip().splitlines()[0]
    expected = "\t" if path.suffix.lower() == ".tsv" else ","
    other = next((sign for sign in _SEPARATORS if sign in header), None)
    if expected in header or other is None:
        return
    remedy = {"\t": "name it .tsv", ",": "name it .csv"}.get(
        other, "save it with commas (.csv) or tabs (.tsv)"
    )
    raise DataError(
        f"{path}: its header {header[:80]!r} is separated by {_SEPARATORS[other]}, and a {path.suffix} by"
        f" {_SEPARATORS[expected]}; {remedy}"
    )


def _read_csv(path: Path, text: str) -> list[Line]:
    lines = parse_rows(
        path, csv.reader(_lines(text), strict=True)
    )  # strict: else a stray quote swallows lines
    _check_widths(path, lines, "a comma")
    return lines


def _read_tsv(path: Path, text: str) -> list[Line]:
    plain = parse_rows(path, csv.reader(_lines(text), delimiter="\t", quoting=csv.QUOTE_NONE))
    if _odd_line(plain) is None:
        return [(number, [unquoted(cell) for cell in cells]) for number, cells in plain]
    try:
        quoted = parse_rows(path, csv.reader(_lines(text), delimiter="\t", strict=True))
    except DataError:  # a stray quote: not written by the csv module's rules
        quoted = plain
    _check_widths(path, plain if _odd_line(quoted) else quoted, "a tab or a line break")
    return quoted


def _lines(text: str) -> io.StringIO:
    return io.StringIO(text, newline="")  # lines end at \n, \r\n or \r, and stay as they are within quotes


def parse_rows(path: Path, table: _Reader) -> list[Line]:
    """All rows that are not blank, with the number of their first line. Raises DataError for odd quotes."""
    lines: list[Line] = []
    first = 1
    try:
        for cells in table:
            if len(cells) > 1 or (cells and cells[0].strip()):
                lines.append((first, cells))
            first = table.line_num + 1
    except csv.Error as error:
        if "field limit" in str(error):
            raise DataError(
                f"{path}, line {first}: a cell of more than {csv.field_size_limit():,} characters; close the quote"
                " that was opened there, or cut the cell"
            ) from None
        lines_read = f"line {first}" if first == table.line_num else f"lines {first} to {table.line_num}"
        raise DataError(f"{path}, {lines_read}: {error}; mend the quotes there") from None
    return lines


def _odd_line(lines: Sequence[Line]) -> Line | None:
    """The first line with another number of cells than the header."""
    return next((line for line in lines if len(line[1]) != len(lines[0][1])), None)


def _check_widths(path: Path, lines: Sequence[Line], separator: str) -> None:
    if (odd := _odd_line(lines)) is not None:
        number, cells = odd
        raise DataError(
            f"{path}, line {number}: {len(cells)} cells, but the header has {len(lines[0][1])}: {cells[:4]!r};"
            f' a caption that holds {separator} stands in quotes: "A dog, brown"'
        )


def unquoted(cell: str) -> str:
    whole = _QUOTED.fullmatch(cell)
    return whole[1].replace('""', '"') if whole else cell


def _find(path: Path, header: Sequence[str], wish: str | None, guesses: Sequence[str], option: str) -> int:
    names = [wish.lower()] if wish else guesses
    for name in names:
        found = [at for at, column in enumerate(header) if column == wish]
        found = found or [at for at, column in enumerate(header) if column.lower() == name]
        if len(found) > 1:
            raise DataError(
                f"{path}: the column {name!r:.200} stands {len(found)} times in the header {list(header)!r:.200};"
                f" rename all but one, or name another with {option}"
            )
        if found:
            return found[0]
    raise DataError(
        f"{path}: no column {' or '.join(names)} in the header {list(header)!r:.200}; name it with {option}"
    )


FORMAT = AnnotationFormat(
    "a folder of images with a CSV or TSV of captions",
    (
        CAPTIONS,
        FormatOption("file_column", "default: guessed from the header"),
        FormatOption("caption_column", "default: guessed from the header"),
    ),
    lambda given: read_table(given["captions"], given["file_column"], given["caption_column"]),
)
