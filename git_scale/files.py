"""Files that are whole or absent: durable writes, digests, atomic publication, records appended whole."""

from __future__ import annotations

import errno
import logging
import os
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import xxhash

log = logging.getLogger(__name__)

BLOCK = 8 << 20  # bytes per read when a file is hashed
WAITING = 32 << 20  # bytes of records that wait in memory for a disk that takes no more
# What file systems answer that do not know a request (CIFS, FUSE, object stores behind a mount).
NOT_SUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY}
NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EBADF}


@dataclass(frozen=True)
class FileDigest:
    """A file's name, size in bytes and xxh3 of its content (19 GB/s per core: it costs nothing beside IO)."""

    name: str
    size: int
    xxh3: str


class _Hashed:
    """Wraps a file to write to, and hashes what it is handed, before the file system has it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hasher = xxhash.xxh3_128()
        self._size = 0

    def write(self, data: bytes | memoryview) -> int:
        self._hasher.update(data)
        self._size += memoryview(data).nbytes
        return self._file.write(data)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        self._file.flush()

    def digest(self, name: str) -> FileDigest:
        return FileDigest(name, self._size, self._hasher.hexdigest())


def write_durably(path: Path, write: Callable[[BinaryIO], object]) -> FileDigest:
    """Writes through `write(file)`, forces it to the disk and returns the digest of the bytes that were meant.

    Raises OSError, also when the file reads back as something else; a file whose write raises is removed.
    """
    try:
        with path.open("wb") as file:
            hashed = _Hashed(file)
            write(hashed)  # type: ignore[arg-type]
            file.flush()
            _sync(file.fileno(), path, NOT_SUPPORTED)
        meant = hashed.digest(path.name)
        if digest(path) != meant:
            raise OSError(errno.EIO, "reads back as something else than was written", str(path))
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return meant


def write_bytes(path: Path, content: bytes) -> FileDigest:
    """As write_durably, of a content in memory."""
    return write_durably(path, lambda file: file.write(content))


def digest(path: Path) -> FileDigest:
    hasher = xxhash.xxh3_128()
    size = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            hasher.update(block)
            size += len(block)
    return FileDigest(path.name, size, hasher.hexdigest())


@contextmanager
def replaced_atomically(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; renamed over it when the block ends well.

    An OSError of the disk names `path`.
    """
    # A name of its own per writer: the ranks of a job may all write the same file at the same time.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            _sync(file.fileno(), path, NOT_SUPPORTED)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary), temporary):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):  # what went wrong before is what has to be known
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A whole file in the place of one that is there, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync_folder(folder: Path) -> None:
    """Forces a rename inside `folder` to the disk; where its file system knows no such request, says so once."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError as error:  # a folder may be written to and not be read
        _say_not_forced(error.errno or errno.EACCES, folder)
        return
    try:
        _sync(handle, folder, NOT_SUPPORTED | NOT_ALLOWED)
    finally:
        os.close(handle)


def _sync(handle: int, path: Path, tolerated: set[int]) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in tolerated:
            raise
        _say_not_forced(error.errno, path)


def _say_not_forced(number: int, path: Path) -> None:
    if number not in _SAID:
        _SAID.add(number)
        log.warning(
            "%s: its file system cannot be told to write to the disk at once (%s): a power cut may cost the newest"
            " files there, the end of a process does not",
            path,
            os.strerror(number),
        )


_SAID: set[int] = set()


class AppendedFile:
    """Appends records to a file, each whole or not at all; while the disk takes none they wait in memory.

    No OSError leaves it: the first one is said, and once records are written again, how many had waited. Of what
    waits beyond WAITING bytes the oldest are lost, and counted.
    """

    def __init__(self, path: Path, prepare: Callable[[Path], None] = lambda _: None) -> None:
        """`prepare(path)` is called before the first record is written, again after it raised OSError."""
        self._path = path
        self._prepare: Callable[[Path], None] | None = prepare
        self._file: FileIO | None = None
        self._end: int | None = None  # of the last whole record; None until the file was opened
        self._waiting: deque[bytes] = deque()
        self._failed = self._lost = 0
        self._write_waiting()

    def append(self, record: bytes) -> None:
        self._waiting.append(record)
        self._write_waiting()
        while sum(map(len, self._waiting)) > WAITING:
            self._waiting.popleft()
            self._lost += 1

    def close(self) -> None:
        """Says how many records were not written, if any."""
        self._write_waiting()
        if lost := self._lost + len(self._waiting):
            log.error("%s: %d records could not be written and are lost", self._path, lost)
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def _write_waiting(self) -> None:
        try:
            file = self._opened()
            while self._waiting:
                self._write(file, self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            self._let_go()
            if not self._failed:
                log.warning("%s: cannot be written: %s; work goes on, its records wait", self._path, error)
            self._failed = max(self._failed, len(self._waiting), 1)
            return
        if self._failed:
            log.warning(
                "%s: written again; %d records had waited, %d are lost", self._path, self._failed, self._lost
            )
        self._failed = self._lost = 0

    def _opened(self) -> FileIO:
        if self._file is not None:
            return self._file
        if self._prepare is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._prepare(self._path)
            self._prepare = None
        self._file = FileIO(self._path, "a")
        size = self._file.seek(0, os.SEEK_END)
        if self._end is not None and size > self._end:  # a part of a record, from before the disk was full
            self._file.truncate(self._end)
        self._end = min(size, size if self._end is None else self._end)
        return self._file

    def _write(self, file: FileIO, record: bytes) -> None:
        rest = memoryview(record)
        while rest:
            rest = rest[file.write(rest) :]
        self._end = (self._end or 0) + len(record)

    def _let_go(self) -> None:
        """A file that failed is opened anew: its handle may be stale, and its end holds a part of a record."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                file.truncate(self._end or 0)
            with suppress(OSError):
                file.close()
