"""The index of one tar shard: which member of which sample lies at which byte.

    a.jpg  a.json  b.0.jpg  b.1.jpg  b.txt                  the members of a shard

    key   kind   frame  offset  size   sample  digest       the rows of NAME.tar.index.npy, by sample
    a     IMAGE      0     512  81234       0  91f2...
    a     JSON       0   82432    120       0  07ac...      digest: xxh3_64 of the bytes, 0 where it is not known
    b     FRAME      0   83968  70211       1  0
    ...
          END        0  250368 256000       2  0            end of the members, size of the file, samples
    {"members": 5, "complete": 2, "content": ..., ...}      behind the array: the summary, one line of JSON

data/indexing.py makes it. Files of the older form, without digests and summary, are read where they say enough.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from git_scale.data.left_out import LeftOut
from git_scale.data.members import PICTURES, TEXTS, VIDEO_ENDINGS, MemberKind
from git_scale.files import replaced_atomically

SUFFIX = ".index.npy"
MAX_SUMMARY = 1 << 16  # bytes
_UNREAD = {f"unknown kind .{ending}" for ending in VIDEO_ENDINGS}
_DIGEST = re.compile("([0-9a-f]{16})?")
BLOCK = 512  # bytes: a tar's headers and data begin at multiples


@dataclass(frozen=True)
class ShardSummary:
    """Says what a start needs to know of a shard without its rows."""

    members: int
    """All of the tar, used or not."""
    complete: int
    """Samples with both an image (image or frames) and a text."""
    content: str = ""
    """Hex, of names, sizes, texts and the last bytes of the images; empty for an index of the older form."""
    digests: str = ""
    """Hex, of all bytes of all members in use; empty while a digest is missing."""
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class ShardIndex:
    """Says where the members of a shard lie. `table`: the rows, in memory or mapped."""

    table: np.ndarray
    summary: ShardSummary

    @property
    def samples(self) -> int:
        return int(self.table[-1]["sample"])

    @property
    def size(self) -> int:
        """Of the shard, in bytes."""
        return int(self.table[-1]["size"])


def dtype_of(key_bytes: int) -> np.dtype:
    places = [("offset", "<i8"), ("size", "<i8"), ("sample", "<i4"), ("digest", "<u8")]
    return np.dtype([("key", f"S{max(key_bytes, 1)}"), ("kind", "u1"), ("frame", "<i4"), *places])


def older_dtype_of(key_bytes: int) -> np.dtype:
    places = [("offset", "<i8"), ("size", "<i8"), ("sample", "<i4")]
    return np.dtype([("key", f"S{max(key_bytes, 1)}"), ("kind", "u1"), ("frame", "<i2"), *places])


def sidecar_of(shard: Path) -> Path:
    return shard.with_name(shard.name + SUFFIX)


def load(shard: Path) -> ShardIndex | None:
    """The saved index of `shard`, mapped into memory; None when there is none that fits the file as it is."""
    index = read(shard)
    try:
        file, sidecar = shard.stat(), sidecar_of(shard).stat()
    except OSError:
        return None
    # sizes of tars are multiples of 10 KiB, so a rebuilt one often has the old size: hence the times
    fits = index is not None and index.size == file.st_size and sidecar.st_mtime_ns >= file.st_mtime_ns
    return index if fits else None


def read(shard: Path) -> ShardIndex | None:
    """The saved index of `shard`, whether it fits or not; None when there is none, or a damaged one."""
    path = sidecar_of(shard)
    if not path.is_file():  # nor is a named pipe, on which a read would wait for ever
        return None
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
        if _well_formed(table, older_dtype_of):
            return _from_older(table)
        if not _well_formed(table, dtype_of):
            return None
        with path.open("rb") as file:
            file.seek(table.offset + table.nbytes)
            summary = _summary(json.loads(file.read(MAX_SUMMARY)))
        # one of before videos were read lists them among what it left out: it is made anew
        return None if _UNREAD & {item.reason for item in summary.left_out} else ShardIndex(table, summary)
    except (OSError, ValueError, EOFError, TypeError, LookupError, ArithmeticError, RecursionError):
        return None  # whatever is wrong with it: it is made anew


def save(shard: Path, index: ShardIndex) -> None:
    """Writes the sidecar of `shard`. Raises OSError in a folder that cannot be written."""
    with replaced_atomically(sidecar_of(shard)) as temporary, temporary.open("wb") as file:
        np.save(file, index.table, allow_pickle=False)
        file.write(json.dumps(asdict(index.summary)).encode() + b"\n")
        file.flush()
        # never older than its shard, whose time may lie in the future: the clocks of two machines differ
        times = [max(os.fstat(file.fileno()).st_mtime_ns, shard.stat().st_mtime_ns)] * 2
        os.utime(temporary, ns=(times[0], times[1]))


def has_kind(table: np.ndarray, kinds: Sequence[MemberKind]) -> np.ndarray:
    """Whether each sample has a member of one of the kinds, [samples] bool."""
    rows = table[:-1]
    found = np.zeros(int(table[-1]["sample"]), bool)
    found[rows["sample"][np.isin(rows["kind"], kinds)]] = True
    return found


def is_complete(table: np.ndarray) -> np.ndarray:
    """Whether each sample has both an image and a text, [samples] bool."""
    return has_kind(table, PICTURES) & has_kind(table, TEXTS)


def _well_formed(table: np.ndarray, dtype: Callable[[int], np.dtype]) -> bool:
    if not isinstance(table, np.memmap) or table.ndim != 1 or len(table) < 2 or not table.dtype.names:
        return False  # an .npz is no memmap
    if table.dtype.names[0] != "key" or table.dtype != dtype(table.dtype["key"].itemsize):
        return False
    member, last = table[-2], table[-1]
    return bool(last["kind"] == MemberKind.END and 0 < last["sample"] == member["sample"] + 1 <= len(table))


def _summary(tree: dict[str, Any]) -> ShardSummary:
    """Raises TypeError, ValueError or LookupError for anything but what `save` writes."""
    if not all(_DIGEST.fullmatch(tree[name]) for name in ("content", "digests")):
        raise ValueError
    return ShardSummary(
        members=int(tree["members"]),
        complete=int(tree["complete"]),
        content=str(tree["content"]),
        digests=str(tree["digests"]),
        left_out=tuple(
            LeftOut(str(reason), int(number), str(name)) for reason, number, name in tree["left_out"]
        ),
    )


def _from_older(older: np.ndarray) -> ShardIndex | None:
    """An index of the older form, which did not say what it left out: taken where it left nothing out.

    Then the samples are numbered as today. Every header takes one block, or three with a pax header of its own (times
    in fractions of a second): with gaps of one such width alone, there is no other member between those in the rows.
    """
    ends = older["offset"][:-2] + -(-older["size"][:-2] // BLOCK) * BLOCK
    gaps = np.unique(older["offset"][1:-1] - ends)
    first = int(older["offset"][0])
    if first not in (BLOCK, 3 * BLOCK) or set(gaps.tolist()) - {first} or not is_complete(older).all():
        return None
    table = np.zeros(len(older), dtype_of(older.dtype["key"].itemsize))
    for name in older.dtype.names or ():
        table[name] = older[name]
    return ShardIndex(table, ShardSummary(len(table) - 1, int(table[-1]["sample"])))
