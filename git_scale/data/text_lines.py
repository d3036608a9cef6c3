"""Samples without images: the lines of text files.

    data/books/one.txt      a text per line
    data/web/00.jsonl       {"text": "..."} per line, or the text alone in quotes

Where each line begins is found by reading all files once, divided over the ranks. A source has 12 bytes per line in
memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from git_scale import text_files
from git_scale.data.captions import TextRecord, decode_text
from git_scale.data.listing import walk
from git_scale.data.store import RawSample, StoreFormat, naming
from git_scale.errors import DataError
from git_scale.paths import special_kind

ENDINGS = (".txt", ".jsonl")
PART = 10_000  # lines that are in random order among those of 15 other parts: see order.py
MAX_LINE_BYTES = 65_536  # of a line; what is behind is not read
LOOKED_AT = 1 << 24  # bytes in which line ends are looked for at once
HEAD = 4096  # bytes by which a file is told from one that is no text


class LinesOfFile(NamedTuple):
    """Where the lines of a file lie that are not empty."""

    name: str
    size: int
    starts: np.ndarray
    """int64 [lines]."""
    lengths: np.ndarray
    """int32 [lines]: in bytes, without the line's end, and at most MAX_LINE_BYTES."""
    digests: np.ndarray
    """uint64 [parts]: of the bytes of each part."""


class TextLinesFormat(StoreFormat):
    """Opens a text file, or a folder in which there is nothing but text files."""

    def problem_of(self, path: Path) -> str:
        if path.is_dir():
            files = [entry.name for _, entry in walk(path) if not entry.is_dir()]
            endings = {Path(name).suffix for name in files if not name.startswith(".")}
            if endings and endings <= set(ENDINGS):
                return ""
            return f"not a folder of text files alone ({' and '.join(ENDINGS)})"
        return "" if path.is_file() and path.suffix in ENDINGS else f"no {' or '.join(ENDINGS)} file"

    def prepare(self, path: Path, part: int, parts: int) -> list[LinesOfFile]:
        folder, names = _files_of(path)
        return [lines_of(folder, name) for name in names[part::parts]]

    def open(self, path: Path, prepared: Sequence[Any]) -> TextLines:
        files = [lines for part in prepared or [self.prepare(path, 0, 1)] for lines in part]
        return TextLines(_files_of(path)[0], sorted(files, key=lambda lines: lines.name))


TEXT_LINES = TextLinesFormat()


def _files_of(path: Path) -> tuple[Path, list[str]]:
    """The folder, and the names of the files below it in order."""
    if path.is_file():
        return path.parent, [path.name]
    return path, sorted(below + entry.name for below, entry in walk(path) if entry.name.endswith(ENDINGS))


def lines_of(folder: Path, name: str) -> LinesOfFile:
    """Raises DataError for a file that is no UTF-8 text, as far as its beginning tells."""
    path = folder / name
    try:
        if kind := special_kind(path):
            raise ValueError(f"it is {kind}; give a file")
        with path.open("rb") as file:
            head = file.read(HEAD)
        if form := text_files.other_form(head):
            raise ValueError(f"it is {form}")
        text_files.decode_utf8(head[: head.rfind(b"\n") + 1])
        content = np.memmap(path, np.uint8, "r") if head else np.zeros(0, np.uint8)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable text file: {error}") from None
    ends = np.concatenate([*_line_ends(content), [len(content)]])
    starts = np.concatenate([[0], ends[:-1] + 1])
    ends = ends - ((ends > starts) & (content[np.maximum(ends, 1) - 1] == ord("\r")) if len(content) else 0)
    holds = ends > starts
    starts, ends = starts[holds], ends[holds]
    digests = [
        xxhash.xxh3_64_intdigest(content[starts[first] : ends[min(first + PART, len(ends)) - 1]].tobytes())
        or 1
        for first in range(0, len(starts), PART)
    ]
    lengths = np.minimum(ends - starts, MAX_LINE_BYTES).astype(np.int32)
    return LinesOfFile(name, len(content), starts, lengths, np.array(digests, np.uint64))


def _line_ends(content: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(content), LOOKED_AT):
        yield first + np.flatnonzero(content[first : first + LOOKED_AT] == ord("\n"))


class TextLines:
    """Gives the lines of text files; its parts are of 10,000 lines of one file."""

    def __init__(self, folder: Path, files: Sequence[LinesOfFile]) -> None:
        self._folder, self._files = folder, list(files)
        self._ends = np.cumsum([len(lines.starts) for lines in files])
        counts = [
            min(PART, len(lines.starts) - first)
            for lines in files
            for first in range(0, len(lines.starts), PART)
        ]
        self.counts = np.array(counts, np.int64)
        self.contents = np.concatenate([np.zeros(0, np.uint64), *(lines.digests for lines in files)])
        known = [(lines.name, len(lines.starts), lines.digests.tolist()) for lines in files]
        self.fingerprint = xxhash.xxh3_64_hexdigest(repr(known).encode())

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def key(self, number: int) -> str:
        lines, own = self._place(number)
        return f"{lines.name}:byte {int(lines.starts[own])}"

    def read(self, number: int) -> RawSample:
        return RawSample(self.key(number), None, [], self.read_text(number))

    def read_text(self, number: int) -> TextRecord:
        lines, own = self._place(number)
        with naming(self.key(number)):
            return TextRecord([], meta={"text": self._text(lines, own)})

    def _text(self, lines: LinesOfFile, own: int) -> str:
        start, length = int(lines.starts[own]), int(lines.lengths[own])
        try:
            with (self._folder / lines.name).open("rb") as file:
                if os.fstat(file.fileno()).st_size != lines.size:
                    raise DataError("the file has changed since the start of the run")
                file.seek(start)
                data = file.read(length)
        except OSError as error:
            raise DataError(str(error.strerror)) from None
        if lines.name.endswith(".jsonl"):
            return _text_of_json(data)
        if length == MAX_LINE_BYTES:  # a character may be cut
            return data.decode("utf-8-sig", "ignore")
        return decode_text(data)

    def _place(self, number: int) -> tuple[LinesOfFile, int]:
        """The file of a sample, and the number of its line among those that hold anything."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        file = int(np.searchsorted(self._ends, number, side="right"))
        lines = self._files[file]
        return lines, number - int(self._ends[file]) + len(lines.starts)


def _text_of_json(data: bytes) -> str:
    if len(data) == MAX_LINE_BYTES:
        raise DataError(f"a line of more than {MAX_LINE_BYTES} bytes: cut its text")
    try:
        value = text_files.parse_json(data)
    except ValueError as error:
        raise DataError(f"the line is not valid JSON: {error}") from None
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise DataError('the line is neither {"text": "..."} nor a text in quotes')
    return text
