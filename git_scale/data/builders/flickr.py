"""Rows of a Flickr8k / Flickr30k token file: lines of `FILE#n<TAB>caption`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from git_scale.data.builders.pictures import Row, gather
from git_scale.errors import DataError


def read_flickr(path: Path) -> list[Row]:
    """One row per picture, in order of first mention. Raises DataError for a line of another form."""
    return gather(_read_pairs(path))


def _read_pairs(path: Path) -> Iterator[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines would cut captions at U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable token file: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, tab, caption = line.partition("\t")
        file, mark, _ = name.rpartition("#")
        if not (tab and mark):
            raise DataError(f"{path}, line {number}: expected FILE#n<TAB>caption, found {line[:60]!r}")
        yield file, caption
