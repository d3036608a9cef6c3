"""Rows of a CSV or TSV file: one column names the picture, one holds a caption."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from git_scale.data.builders.pictures import Row, gather
from git_scale.errors import DataError

FILE_COLUMNS = ("file", "image", "filepath", "path", "image_path")
CAPTION_COLUMNS = ("caption", "text", "title")


def read_table(path: Path, file_column: str | None = None, caption_column: str | None = None) -> list[Row]:
    """One row per picture, in order of first mention, with the captions of all its lines.

    Columns that are not named are guessed from the header.
    Raises DataError for an unreadable table or a column that is not there.
    """
    if path.suffix.lower() not in (".csv", ".tsv"):
        raise DataError(f"{path}: a table of captions is a .csv (commas) or a .tsv (tabs) file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = _parse(path, file)
            header = [name.strip() for name in next(lines, [])]
            file_at = _find(path, header, file_column, FILE_COLUMNS, "--file-column")
            caption_at = _find(path, header, caption_column, CAPTION_COLUMNS, "--caption-column")
            return gather((_cell(line, file_at).strip(), _cell(line, caption_at)) for line in lines if line)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable table: {error}") from None


def _parse(path: Path, file: Iterator[str]) -> Iterator[list[str]]:
    if path.suffix.lower() == ".tsv":  # tabs need no quotes: one in a caption is a character like any other
        table = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        table = csv.reader(file, strict=True)  # else a stray quote swallows thousands of lines in silence
    try:
        yield from table
    except csv.Error as error:
        raise DataError(f"{path}, line {table.line_num}: {error}; mend the quotes of that line") from None


def _find(path: Path, header: Sequence[str], wish: str | None, guesses: Sequence[str], option: str) -> int:
    names = [wish.lower()] if wish else guesses
    lower = [name.lower() for name in header]
    for name in names:
        if name in lower:
            return lower.index(name)
    raise DataError(
        f"{path}: no column {' or '.join(names)} in the header {list(header)}; name it with {option}"
    )


def _cell(line: Sequence[str], column: int) -> str:
    return line[column] if column < len(line) else ""
