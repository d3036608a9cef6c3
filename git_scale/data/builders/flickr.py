"""Rows of a Flickr8k / Flickr30k token file: lines of `FILE#n<TAB>caption`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from git_scale.data.builders.formats import CAPTIONS, AnnotationFormat
from git_scale.data.builders.source_images import SourceRow, gather
from git_scale.errors import DataError
from git_scale.text_files import read_text


def read_flickr(path: Path) -> list[SourceRow]:
    """One row per image, in order of first mention.

    Raises DataError for a line of another form, or when `FILE#n` stands twice.
    """
    return gather(_read_pairs(path))


def _read_pairs(path: Path) -> Iterator[tuple[str, str]]:
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable token file: {error}") from None
    lines: dict[str, int] = {}
    # all three line ends; splitlines would cut captions at U+2028 as well
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if not line.strip():
            continue
        name, tab, caption = line.rstrip("\n").partition("\t")
        file, _, mark = name.rpartition("#")
        if not (tab and file and mark.strip().isdecimal()):
            raise DataError(f"{path}, line {number}: expected FILE#n<TAB>caption, found {line[:60]!r}")
        if lines.setdefault(name, number) != number:
            raise DataError(
                f"{path}, line {number}: {name!r:.200} stands on line {lines[name]} already; number the captions of a"
                " image #0, #1, ..."
            )
        yield file, caption


FORMAT = AnnotationFormat(
    "Flickr8k or Flickr30k: lines of FILE#n<TAB>caption",
    (CAPTIONS,),
    lambda given: read_flickr(given["captions"]),
)
