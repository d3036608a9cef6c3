"""The index of one tar shard: which member of which sample lies at which byte.

    a.jpg  a.json  b.0.jpg  b.1.jpg  b.txt                  the members of a shard, in their order

    key   kind   frame  offset  size   sample               the rows of NAME.tar.index.npy
    a     IMAGE      0     512  81234       0
    a     JSON       0   82432    120       0
    b     FRAME      0   83968  70211       1
    ...
          END        0  250368 256000       2               end of the members, size of the file, samples

The scan is strict, because both tarfile and webdataset end in silence at the first damaged header.
"""

from __future__ import annotations

import enum
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from git_scale.errors import DataError
from git_scale.files import replaced_atomically

SUFFIX = ".index.npy"
MAX_KEY_BYTES = 255  # keys have a fixed width in the table: one forged long name must not blow it up

# webdataset's split: folder and name up to the first dot of the basename | everything behind that dot
_NAME = re.compile(r"((?:.*/|)[^.]+)\.([^/]*)", re.DOTALL)
_EXTENSION = re.compile(r"(?:(?P<frame>[0-9]{1,4})\.)?(?P<image>jpg|jpeg|png|webp)|(?P<json>json)|txt")


class Kind(enum.IntEnum):
    IMAGE = 0
    FRAME = 1
    JSON = 2
    TXT = 3
    END = 255


class Row(NamedTuple):
    """One member: `offset` and `size` of its data in bytes, `sample` its number within the shard."""

    key: bytes
    kind: int
    frame: int
    offset: int
    size: int
    sample: int


def dtype_of(key_bytes: int) -> np.dtype:
    key = ("key", f"S{max(key_bytes, 1)}")
    return np.dtype(
        [key, ("kind", "u1"), ("frame", "<i2"), ("offset", "<i8"), ("size", "<i8"), ("sample", "<i4")]
    )


def sidecar_of(shard: Path) -> Path:
    return shard.with_name(shard.name + SUFFIX)


def load(shard: Path) -> np.ndarray | None:
    """The saved table of `shard`, mapped into memory; None when there is none that fits the file as it is."""
    try:
        table = np.load(sidecar_of(shard), mmap_mode="r", allow_pickle=False)
        return table if _fits(table, shard) else None
    except (OSError, ValueError, EOFError):
        return None


def save(shard: Path, table: np.ndarray) -> None:
    """Writes the sidecar of `shard`. Raises OSError in a folder that cannot be written."""
    with replaced_atomically(sidecar_of(shard)) as temporary, temporary.open("wb") as file:
        np.save(file, table, allow_pickle=False)


def scan(shard: Path) -> np.ndarray:
    """Reads every header of `shard` and returns its table.

    Raises DataError when the shard is damaged (with the place) or holds no sample.
    """
    size = shard.stat().st_size
    if size == 0:
        raise DataError(f"{shard}: an empty file; rebuild it or move it away")
    rows: list[Row] = []
    try:
        with shard.open("rb") as file:
            end = _scan_members(file, size, rows)
            _check_end(file, end, size)
    except _DamageError as damage:
        raise DataError(
            f"{shard}: {damage.what} at byte {damage.position} of {size},"
            f" behind {num_complete(_table(rows, 0, size))} intact samples; rebuild it or move it away"
        ) from None
    if not rows:
        raise DataError(f"{shard}: no sample inside (pictures .jpg .jpeg .png .webp, texts .json .txt)")
    return _table(rows, end, size)


def num_samples(table: np.ndarray) -> int:
    return int(table[-1]["sample"])


def num_complete(table: np.ndarray) -> int:
    """How many samples have both a picture (image or frames) and a text."""
    sample, kind = table["sample"][:-1], table["kind"][:-1]
    pictures = sample[(kind == Kind.IMAGE) | (kind == Kind.FRAME)]
    texts = sample[(kind == Kind.JSON) | (kind == Kind.TXT)]
    return len(np.intersect1d(pictures, texts))


class _DamageError(Exception):
    def __init__(self, what: str, position: int) -> None:
        super().__init__(what)
        self.what, self.position = what, position


def _scan_members(file: IO[bytes], size: int, rows: list[Row]) -> int:
    """Appends a row per known member; returns the position behind the last member."""
    end, key, seen, sample = 0, "", set[str](), -1
    for info, end in _members(file, size):  # noqa: B007  # the last `end` is the result
        name = _NAME.fullmatch(info.name)
        if name is None or not info.isreg() or info.issparse():
            continue
        if name[1] != key:
            key, seen = name[1], set()
        extension = name[2].lower()
        kind = _EXTENSION.fullmatch(extension)
        if kind is None:
            continue
        if extension in seen:
            raise _DamageError(f"{info.name!r} a second time within one sample", info.offset)
        sample += not seen
        seen.add(extension)
        short = key.encode("utf-8", "surrogateescape")[:MAX_KEY_BYTES]
        rows.append(Row(short, _kind(kind), int(kind["frame"] or 0), info.offset_data, info.size, sample))
    return end


def _kind(extension: re.Match[str]) -> Kind:
    if extension["image"]:
        return Kind.FRAME if extension["frame"] else Kind.IMAGE
    return Kind.JSON if extension["json"] else Kind.TXT


def _members(file: IO[bytes], size: int) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Every member whose data is wholly there, with the position behind it."""
    end = 0
    try:
        # utf-8 and surrogates: any bytes are a name, whatever the locale
        tar = tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
        while (info := tar.next()) is not None:
            behind = info.offset_data + info.size if info.isreg() else tar.offset
            if behind > size or info.size < 0 or tar.offset <= end:
                raise _DamageError(f"cut short: member {info.name!r} does not end", info.offset)
            end = tar.offset
            yield info, end
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise _DamageError(f"damaged ({error})", end) from None


def _check_end(file: IO[bytes], end: int, size: int) -> None:
    """A healthy tar ends with at least two blocks of zeros, and nothing else."""
    if size - end < 2 * tarfile.BLOCKSIZE:
        raise _DamageError("cut short: the end mark is missing", end)
    file.seek(end)
    position = end
    while chunk := file.read(1 << 20):
        if chunk.count(0) < len(chunk):
            raise _DamageError("damaged (neither a member nor the end)", position)
        position += len(chunk)


def _table(rows: list[Row], end: int, size: int) -> np.ndarray:
    samples = rows[-1].sample + 1 if rows else 0
    last = Row(b"", Kind.END, 0, end, size, samples)
    return np.array([*rows, last], dtype=dtype_of(max((len(row.key) for row in rows), default=0)))


def _fits(table: np.ndarray, shard: Path) -> bool:
    """Whether the table is well formed, made for a file of this size, and not older than the file."""
    if table.ndim != 1 or len(table) < 2 or not table.dtype.names or table.dtype.names[0] != "key":
        return False
    if table.dtype != dtype_of(table.dtype["key"].itemsize):
        return False
    member, last, file = table[-2], table[-1], shard.stat()
    if (last["kind"], last["size"]) != (Kind.END, file.st_size):
        return False
    # sizes of tars are multiples of 10 KiB, so a rebuilt one often has the old size: hence the times
    if sidecar_of(shard).stat().st_mtime_ns < file.st_mtime_ns:
        return False
    return bool(0 < last["sample"] == member["sample"] + 1 <= len(table))
