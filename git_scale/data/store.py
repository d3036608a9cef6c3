"""What a source of samples is, and the table of the formats in which samples lie on a disk.

    store = open_store("data/train")     whatever format takes the path: today tar shards
    len(store)                           samples; store.counts: of each part
    store.read(7)                        RawSample: bytes and text, nothing decoded

A format of your own is one class with the methods of StoreFormat; a module under `plugins` adds it by
`STORE_FORMATS.add("captions_csv", CaptionsCsv())`. The first format that finds nothing wrong with a path opens it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from git_scale.data.captions import TextRecord
from git_scale.errors import DataError
from git_scale.registry import Registry


@dataclass(frozen=True)
class RawSample:
    """Holds a sample as it is stored, under the `key` that messages name it by.

    `frames` are in the order of their numbers; image, frames or video may be missing.
    """

    key: str
    image: bytes | None
    frames: list[bytes]
    text: TextRecord
    source: int = 0
    """Number of its source among several."""
    video: bytes | None = None
    """A whole video file, of which frames are taken when it is used."""

    @property
    def is_clip(self) -> bool:
        return bool(self.frames or self.video)


class SampleStore(Protocol):
    """Gives samples by number, in parts that are read one after the other: shards, say.

    It is pickled and forked, so it holds no open file whose position moves.
    """

    @property
    def counts(self) -> np.ndarray:
        """int64 [parts]: samples of each part; the numbers of a part's samples follow those of the part before."""

    @property
    def fingerprint(self) -> str:
        """The same for the same samples, wherever they lie: what a run compares when it goes on."""

    @property
    def contents(self) -> np.ndarray:
        """uint64 [parts]: a digest of what each part holds, 0 where none is known: held-out parts are told by it."""

    def __len__(self) -> int: ...

    def key(self, number: int) -> str:
        """The name of sample `number` in messages, also where it cannot be read."""

    def read(self, number: int) -> RawSample:
        """Sample `number`. Raises DataError, naming the sample, when it has no image or no valid text."""

    def read_text(self, number: int) -> TextRecord:
        """The text of sample `number` alone. Raises DataError naming the sample."""


class StoreFormat(Protocol):
    """One way in which samples lie on a disk."""

    def problem_of(self, path: Path) -> str:
        """Why `path` is nothing to open, as far as a short look tells, and what to do; empty for what can be."""

    def prepare(self, path: Path, part: int, parts: int) -> Any:
        """Does part number `part` of `parts` of the work that comes before opening; its result is pickled.

        Each rank of a run does one part, and all of them get what came of every one.
        By default there is no such work.
        """
        return None

    def open(self, path: Path, prepared: Sequence[Any]) -> SampleStore:
        """The samples of `path`. `prepared`: of all parts; none: what comes before opening is done here.

        Raises one DataError that lists every problem.
        """


STORE_FORMATS: Registry[StoreFormat] = Registry(
    "format of samples",
    {
        "tar": "git_scale.data.tar_shards:TAR",
        "lmdb": "git_scale.data.lmdb_store:LMDB",
        "text_lines": "git_scale.data.text_lines:TEXT_LINES",
    },
)


def problem_of(path: str | Path) -> str:
    """Why no format takes `path`, and what to do; empty where one does."""
    problems = []
    for name in STORE_FORMATS:
        if not (problem := STORE_FORMATS[name].problem_of(Path(path))):
            return ""
        problems.append(problem)
    return "; ".join(problems) if Path(path).exists() else problems[0]


def prepare_store(path: str | Path, part: int, parts: int) -> Any:
    """See StoreFormat.prepare. Raises DataError where no format takes `path`."""
    return _format_of(Path(path)).prepare(Path(path), part, parts)


def open_store(path: str | Path, prepared: Sequence[Any] = ()) -> SampleStore:
    """The samples of `path`. `prepared`: what came of preparing all its parts; none: that is done here.

    Logs what lies there and is not used. Raises one DataError that lists every problem.
    """
    store = _format_of(Path(path)).open(Path(path), prepared)
    if not len(store):
        raise DataError(f"{path}: there is no sample in it")
    return store


def _format_of(path: Path) -> StoreFormat:
    for name in STORE_FORMATS:
        if not STORE_FORMATS[name].problem_of(path):
            return STORE_FORMATS[name]
    raise DataError(f"{path}: {problem_of(path)}")


@contextmanager
def naming(key: str) -> Iterator[str]:
    """Puts the sample's key before the message of any DataError from inside."""
    try:
        yield key
    except DataError as error:
        raise DataError(f"{key}: {error}") from None
