"""From a shard to its index: headers and texts alone, or every byte.

scan    headers, texts and the last bytes of each image; digests where the caller has written the shard
make    a scan that keeps what an older index knows
fill    every byte: the digests that are missing
"""

from __future__ import annotations

import logging
import os
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import numpy as np
import xxhash
from numpy.lib import recfunctions

from git_scale.data import index, tar_scan
from git_scale.data.index import ShardIndex, ShardSummary
from git_scale.data.left_out import NO_IMAGE, NO_TEXT, SECOND_IMAGE, LeftOutCounts
from git_scale.data.members import (
    PICTURES,
    TEXT_ENDINGS,
    TEXTS,
    Member,
    MemberKind,
    PlacedMember,
    group,
    known_parts,
    repeated,
)
from git_scale.data.other_texts import count_other_texts, hash_text
from git_scale.data.tar_scan import DamageError
from git_scale.errors import DataError
from git_scale.files import BLOCK
from git_scale.stop import check_stop
from git_scale.text_files import other_form

log = logging.getLogger(__name__)

SAY_EVERY = 10.0  # seconds between two lines of progress
MAX_KEY_BYTES = 255  # keys have a fixed width in the table: one forged long name must not blow it up
MAX_TEXT = 1 << 20  # bytes of a text that a scan reads; of what is longer it reads the end, as of an image
PROBE = 64  # bytes at the end of an image that a scan reads: a PNG's checksum, a JPEG's last blocks

Tick = Callable[[], None]


@dataclass(frozen=True)
class IndexingResult:
    """Says what came of making indexes; `a | b` for the parts that several processes have made."""

    unsaved: dict[Path, ShardIndex] = field(default_factory=dict)
    """Of shards in a folder that cannot be written."""
    problems: dict[Path, str] = field(default_factory=dict)

    def __or__(self, other: IndexingResult) -> IndexingResult:
        return IndexingResult(self.unsaved | other.unsaved, self.problems | other.problems)


def make_indexes(paths: Sequence[Path], digests: bool = False, tick: Tick = check_stop) -> IndexingResult:
    """Makes and saves the indexes of `paths`, one after the other, and logs how far it is.

    `digests`: every byte is read. `tick` is called at every member, to hear a stop or to tell others that it goes on.
    """
    done = IndexingResult()
    progress = _Progress(paths, tick)
    for path in paths:
        progress.begin(path)
        try:
            made = make(path, progress.tick)
            if digests:
                made = fill(path, made, progress.tick)
            if not _keep(path, made):
                done.unsaved[path] = made
        except DataError as error:
            done.problems[path] = str(error)
        except OSError as error:
            done.problems[path] = f"{path}: cannot be read: {error.strerror}"
    return done


def _keep(shard: Path, made: ShardIndex) -> bool:
    try:
        index.save(shard, made)
    except OSError:
        return False
    return index.load(shard) is not None


class _Progress:
    """Says every few seconds how far the indexing is."""

    def __init__(self, paths: Sequence[Path], tick: Tick) -> None:
        self._paths, self._tick = paths, tick
        self._number = self._members = 0
        self._started = self._said = time.monotonic()

    def begin(self, path: Path) -> None:
        self._path, self._number = path, self._number + 1

    def tick(self) -> None:
        self._tick()
        self._members += 1
        now = time.monotonic()
        if now - self._said < SAY_EVERY:
            return
        self._said = now
        passed = now - self._started
        left = passed / self._number * (len(self._paths) - self._number + 1)
        log.info(
            "indexing: shard %d of %d (%s), %d members/s, about %d s left",
            *(self._number, len(self._paths), self._path.name, self._members / passed, left),
        )


def make(shard: Path, tick: Tick = check_stop) -> ShardIndex:
    """The index of `shard` as it is now, not saved. `tick` is called at every member.

    Digests are kept from an index that differs from the shard by its time alone, as in a copied folder.
    Raises DataError when the shard is damaged, changes meanwhile, or holds no sample.
    """
    before = index.read(shard)
    made = scan(shard, tick=tick)
    if before is None or before.summary.content != made.summary.content:
        return made
    table = made.table.copy()
    table["digest"] = before.table["digest"]
    return _digested(table, made.summary)


def scan(shard: Path, digests: Mapping[str, int] | None = None, tick: Tick = check_stop) -> ShardIndex:
    """Reads every header and text of `shard`, and the end of every image. `tick` is called at every member.

    `digests`: of the bytes that were meant, by the names of the members, where the caller has written them.
    Raises DataError when the shard is damaged (with the place), changes meanwhile, or holds no sample.
    """
    with shard.open("rb") as file:
        before = os.fstat(file.fileno())
        made = _scan_open(shard, file, before.st_size, digests, tick)
        after = shard.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise DataError(f"{shard}: it changed while it was read; start again when it is whole")
    return made


def fill(shard: Path, known: ShardIndex, tick: Tick = check_stop) -> ShardIndex:
    """`known` with the digest of every member. `tick` is called at every member that is read.

    Raises DataError when the shard ends before its members do.
    """
    table = known.table.copy()
    with shard.open("rb", buffering=0) as file:
        for number in np.flatnonzero(table["digest"][:-1] == 0):
            tick()
            row = table[number]
            try:
                table["digest"][number] = _digest(file, int(row["offset"]), int(row["size"]))
            except EOFError:
                raise DataError(
                    f"{shard}: it was cut while it was read; rebuild it or move it away"
                ) from None
    return _digested(table, known.summary)


def _digest(file: IO[bytes], offset: int, size: int) -> int:
    hasher = xxhash.xxh3_64()
    while size:
        block = os.pread(file.fileno(), min(size, BLOCK), offset)
        if not block:
            raise EOFError
        hasher.update(block)
        offset, size = offset + len(block), size - len(block)
    return hasher.intdigest()


def _scan_open(
    shard: Path, file: IO[bytes], size: int, digests: Mapping[str, int] | None, tick: Tick
) -> ShardIndex:
    if size == 0:
        raise DataError(f"{shard}: an empty file; rebuild it or move it away")
    known, reasons, count, end = list[Member](), LeftOutCounts(), 0, 0
    try:
        for info, end in tar_scan.members(file, size):  # noqa: B007  # the last `end` is the result
            tick()
            count += 1
            parts = known_parts(info, reasons)
            if parts is not None:
                known.append(_member(file, info, parts, digests[info.name] if digests is not None else None))
        tar_scan.check_end(file, end, size)
        if twice := repeated(known):
            name = f"{twice.stem}.{twice.ending}"
            raise DamageError(f"{name!r} a second time within one sample", twice.header)
    except DamageError as damage:
        if not count and (form := other_form(os.pread(file.fileno(), tarfile.BLOCKSIZE, 0))):
            raise DataError(f"{shard}: {form}") from None
        before = _rows(
            group([member for member in known if member.header < damage.position], LeftOutCounts()), 0, 0
        )
        raise DataError(
            f"{shard}: {damage.what} at byte {damage.position} of {size},"
            f" behind {int(index.is_complete(before).sum())} intact samples; rebuild it or move it away"
        ) from None
    if not known:
        left_out = reasons.describe(0, count)
        raise DataError(
            f"{shard}: no sample inside (images .jpg .jpeg .png .webp, videos .mp4 ..., texts .json .txt)"
            f"{f'; {left_out}' if left_out else ''}"
        )
    return _index_of(known, count, end, size, reasons)


def _member(file: IO[bytes], info: tarfile.TarInfo, parts: tuple[str, str], meant: int | None) -> Member:
    """`meant`: the digest of what was written. Raises DamageError when a text is something else."""
    offset, size = info.offset_data, info.size
    whole = parts[1] in TEXT_ENDINGS and size <= MAX_TEXT
    start = offset if whole else max(offset, offset + size - PROBE)
    data = os.pread(file.fileno(), offset + size - start, start)
    probe = xxhash.xxh3_64_intdigest(data)
    if whole and meant not in (None, probe):
        raise DamageError(f"{info.name!r} does not hold the bytes that were written", info.offset)
    text = hash_text(parts[1], data) if whole else None
    return Member(*parts, info.offset, offset, size, probe if whole else meant or 0, probe, text)


def _index_of(known: list[Member], members: int, end: int, size: int, reasons: LeftOutCounts) -> ShardIndex:
    placed = group(known, reasons)
    count_other_texts(placed, reasons)
    table = _rows(placed, end, size)
    rows = table[:-1]
    keys = rows["key"][np.searchsorted(rows["sample"], np.arange(placed[-1].sample + 1))]
    images = rows[np.isin(rows["kind"], PICTURES)]
    _, first_ones = np.unique(images[["sample", "kind", "frame"]], return_index=True)
    for reason, names in (
        (NO_TEXT, keys[~index.has_kind(table, TEXTS)]),
        (NO_IMAGE, keys[~index.has_kind(table, PICTURES)]),
        (SECOND_IMAGE, np.delete(images["key"], first_ones)),
    ):
        if len(names):
            reasons.add(reason, names[0].decode("utf-8", "replace"), len(names))
    # without the offsets: where the members lie is no content
    content = recfunctions.repack_fields(rows[["key", "kind", "frame", "size", "sample"]]).tobytes()
    probes = np.array([item.member.probe for item in placed], "<u8").tobytes()
    complete = int(index.is_complete(table).sum())
    digest = xxhash.xxh3_64_hexdigest(content + probes)
    return _digested(table, ShardSummary(members, complete, digest, left_out=reasons.listed()))


def _rows(placed: list[PlacedMember], end: int, size: int) -> np.ndarray:
    keys = [item.key.encode("utf-8", "surrogateescape")[:MAX_KEY_BYTES] for item in placed]
    rows = [
        (key, item.kind, item.frame, item.member.offset, item.member.size, item.sample, item.member.digest)
        for key, item in zip(keys, placed, strict=True)
    ]
    last = (b"", MemberKind.END, 0, end, size, placed[-1].sample + 1 if placed else 0, 0)
    return np.array([*rows, last], dtype=index.dtype_of(max(map(len, keys), default=0)))


def _digested(table: np.ndarray, summary: ShardSummary) -> ShardIndex:
    """The index with the digest of all bytes, where every member has its own."""
    digests = table["digest"][:-1]
    whole = xxhash.xxh3_64_hexdigest(summary.content.encode() + digests.tobytes())
    return ShardIndex(table, replace(summary, digests=whole if digests.all() else ""))
