"""Lists of the images of one folder, with or without a class: what --labels and --unlabelled name.

ImageId,PredictionString                 Kaggle's; the first word is the class, and the rest a box
n01440764_18.JPEG,great white shark      parted by a comma,
my photo.jpg<TAB>tench, Tinca tinca      by tabs alone where the file has one,
my photo.jpg great white shark           or by the blank behind the name
"""

from __future__ import annotations

import csv
import io
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from git_scale.data.builders.tables import FILE_COLUMNS, Line, parse_rows, unquoted
from git_scale.data.images import ENDINGS
from git_scale.errors import DataError
from git_scale.text_files import read_text

KAGGLES = ["ImageId", "PredictionString"]
HEADERS = {*FILE_COLUMNS, "filename", "file_name", "image_id", "imageid", "image_name", "name", "id"}
"""What a first line begins with that names no image, in small letters."""

_ENDING = "|".join(map(re.escape, ENDINGS))
_NAME_AND_REST = re.compile(rf"(.*?(?:{_ENDING}))(?:\s+(.*))?", re.DOTALL | re.IGNORECASE)


def read_list(path: Path, source: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Number of each line, the image's file, and the cells behind it, of which Kaggle's is its class alone.

    A header is passed over: Kaggle's, or one that begins with a word of HEADERS which names no image in `source`.
    Raises DataError for a list that cannot be read, has quotes amiss or a line without a file.
    """
    lines = _lines(path)
    first = [cell.strip() for cell in lines[0][1]] if lines else [""]
    is_kaggles = first == KAGGLES
    is_header = is_kaggles or (first[0].lower() in HEADERS and not is_there(source, _file_of(first[0])))
    for number, (name, *rest) in lines[is_header:]:
        if not name.strip():
            raise DataError(f"{path}, line {number}: FILE is expected first, found {','.join(rest)[:60]!r}")
        yield (
            number,
            _file_of(name),
            [cell.split()[0] for cell in rest if cell.strip()] if is_kaggles else rest,
        )


def is_there(source: Path, file: str) -> bool:
    return os.path.isfile(source / file)  # noqa: PTH113 - Path's fails for an overlong name


def _lines(path: Path) -> list[Line]:
    """The cells of each line with its number: by tabs where the file has one, else by commas."""
    text = readable(path, "list of images").getvalue()
    if "\t" in text and not text.startswith(",".join(KAGGLES)):
        plain = csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
        lines = [(number, [unquoted(cell) for cell in cells]) for number, cells in parse_rows(path, plain)]
    else:
        lines = parse_rows(path, csv.reader(io.StringIO(text), strict=True))  # else a quote swallows lines
    return [(number, _parted(cells)) for number, cells in lines]


def _parted(cells: list[str]) -> list[str]:
    """Name and class of "my photo.jpg sea snake", by the blank behind an image's ending, or else by the first.

    "dog, brown.jpg" is one name.
    """
    if len(cells) == 1:
        found = _NAME_AND_REST.fullmatch(cells[0].strip())
        return [part for part in found.groups() if part] if found else cells[0].split(None, 1)
    has_ending = [cell.strip().lower().endswith(ENDINGS) for cell in cells]
    return [",".join(cells)] if has_ending[-1] and not any(has_ending[:-1]) else cells


def _file_of(name: str) -> str:
    file = posixpath.normpath(name.strip())
    return file if Path(file).suffix else f"{file}.JPEG"


def readable(path: Path, what: str) -> io.StringIO:
    """The file's lines. Raises DataError for one that is no text."""
    try:
        return io.StringIO(read_text(path), newline=None)  # all three line ends, and no others
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable {what}: {error}") from None
