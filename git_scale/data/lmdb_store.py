"""Samples from LMDB databases as scene text recognition is published in: MJSynth, SynthText, IIIT5k, ...

    num-samples          "8919273"
    image-000000001      the bytes of a JPEG, PNG or WebP
    label-000000001      the word, UTF-8

A folder with a `data.mdb` is one database; a folder above several holds a part for each. The word is the caption.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from git_scale.data.captions import TextRecord, decode_text
from git_scale.data.listing import walk
from git_scale.data.store import RawSample, StoreFormat, naming
from git_scale.errors import DataError
from git_scale.text_files import whole_number

FILE = "data.mdb"
COUNT, IMAGE, LABEL = b"num-samples", "image-{:09d}", "label-{:09d}"
COMPARED = 64
"""Samples of a database, over all of it, that its digest is of; the whole of MJSynth would take minutes to read."""


class LmdbFormat(StoreFormat):
    """Opens a database of words, or all below a folder."""

    def problem_of(self, path: Path) -> str:
        return "" if databases_of(path) else f"no {FILE} (an LMDB of words) in it"

    def open(self, path: Path, prepared: Sequence[Any]) -> LmdbStore:
        return LmdbStore(path, databases_of(path))


LMDB = LmdbFormat()


def databases_of(path: Path) -> list[str]:
    """The folders of the databases below `path`, as texts relative to it, in order; `.` for itself."""
    if (path / FILE).is_file():
        return ["."]
    return (
        sorted(below.rstrip("/") for below, entry in walk(path) if entry.name == FILE)
        if path.is_dir()
        else []
    )


class LmdbStore:
    """Gives the samples of the databases of a folder; a hole in one is a sample that cannot be read."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        """Raises DataError for a database that cannot be opened, or does not say how many samples it has."""
        self.root, self.names = root, list(names)
        counts = [self._count(part) for part in range(len(names))]
        self.names = [name for name, count in zip(names, counts, strict=True) if count]
        self.counts = np.array(list(filter(None, counts)), np.int64)
        self._ends = np.cumsum(self.counts)
        self.contents = np.array([self._digest(part) for part in range(len(self.names))], np.uint64)
        parts = sorted(zip(self.names, self.counts.tolist(), self.contents.tolist(), strict=True))
        self.fingerprint = xxhash.xxh3_64_hexdigest(repr(parts).encode())

    def __len__(self) -> int:
        return int(self.counts.sum())

    def key(self, number: int) -> str:
        part, own = self._place(number)
        name = self.names[part] if self.names[part] != "." else self.root.name
        return f"{name}:{own:09d}"

    def read(self, number: int) -> RawSample:
        part, own = self._place(number)
        with naming(self.key(number)) as key:
            image = self._value(part, IMAGE.format(own).encode())
            if not image:
                raise DataError("no image: a hole in the database")
            return RawSample(key, image, [], self._text(part, own))

    def read_text(self, number: int) -> TextRecord:
        part, own = self._place(number)
        with naming(self.key(number)):
            return self._text(part, own)

    def _text(self, part: int, own: int) -> TextRecord:
        label = self._value(part, LABEL.format(own).encode())
        if label is None:
            raise DataError("no label: a hole in the database")
        return TextRecord([decode_text(label)])

    def _place(self, number: int) -> tuple[int, int]:
        """Database of a sample, and its number in there, which counts from 1."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        part = int(np.searchsorted(self._ends, number, side="right"))
        return part, number - int(self._ends[part] - self.counts[part]) + 1

    def _count(self, part: int) -> int:
        told = self._value(part, COUNT)
        count = None if told is None else whole_number(told.strip().decode("ascii", "replace"))
        folder = self.root / self.names[part]
        if count is None:
            shown = repr(told and told[:80])
            raise DataError(f"{folder}: its num-samples is {shown}, not a number: not an LMDB of words")
        entries = int(_database(folder).stat()["entries"])
        if count > entries:  # more than half of the samples lack their image or their label
            raise DataError(
                f"{folder}: its num-samples is {count}, but it has {entries} entries, of which a sample takes two:"
                " the database is not whole, copy it again"
            )
        return count

    def _digest(self, part: int) -> int:
        """Of the number of samples, and of some of them."""
        count = int(self.counts[part])
        digest = xxhash.xxh3_64(str(count).encode())
        for own in np.unique(np.linspace(1, count, COMPARED).astype(int)).tolist():
            for name in (IMAGE, LABEL):
                digest.update(self._value(part, name.format(own).encode()) or b"")
        return digest.intdigest() or 1  # 0 stands for an unknown one

    def _value(self, part: int, key: bytes) -> bytes | None:
        folder = self.root / self.names[part]
        lmdb = _lmdb()
        try:
            with _database(folder).begin() as transaction:
                value: bytes | None = transaction.get(key)
        except lmdb.Error as error:
            raise DataError(f"{folder}: {error}") from None
        return value


_OPEN: dict[tuple[int, int], Any] = {}
"""Databases that this process has open, by file: LMDB opens each once in a process, and none outlives a fork."""


def _database(folder: Path) -> Any:
    try:
        found = (folder / FILE).stat()
    except OSError as error:
        raise DataError(f"{folder / FILE}: {error.strerror}") from None
    if (key := (found.st_dev, found.st_ino)) not in _OPEN:
        # no lock file is written and nothing is read ahead: many readers share the system's memory of the file
        database = _lmdb().open(str(folder), readonly=True, lock=False, readahead=False, meminit=False)
        used = (database.info()["last_pgno"] + 1) * database.stat()["psize"]
        if found.st_size < used:  # a page that is not there would end the process by SIGBUS
            database.close()
            raise DataError(
                f"{folder / FILE}: cut off: {found.st_size} bytes, and its pages are {used}; copy it again"
            )
        _OPEN[key] = database
    return _OPEN[key]


def _close_all() -> None:
    while _OPEN:
        _OPEN.popitem()[1].close()


os.register_at_fork(before=_close_all)  # parent and child open anew what they read


def _lmdb() -> Any:
    try:
        import lmdb
    except ImportError:
        raise DataError("LMDB databases are read with lmdb: pip install 'lmdb>=1.6.2,<4'") from None
    return lmdb
