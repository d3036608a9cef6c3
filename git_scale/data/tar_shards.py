"""Samples by number from a folder of tar shards.

    folder/NAME-000000.tar  + .index.npy  ->  TarShards  ->  read(number)  ->  RawSample (bytes and text)

Nothing is unpacked and nothing is decoded here: a sample is one `pread` per member.
"""

from __future__ import annotations

import logging
import operator
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash

from git_scale.data.captions import TextRecord, decode_text, parse_json
from git_scale.data.fingerprint import fingerprint_of
from git_scale.data.index import SUFFIX, Index, ShardFacts, facts_of, load
from git_scale.data.indexing import Indexed, make_indexes, unindexed
from git_scale.data.members import Kind
from git_scale.data.shard_report import announce, left_out_of, other_archives, shards_below
from git_scale.data.store import RawSample, naming
from git_scale.errors import DataError
from git_scale.paths import special_kind

log = logging.getLogger(__name__)

MAKER = "tools/prepare_data.py makes"
PARTIAL = ".partial"  # the name of a folder that a build still writes to ends so
MAX_OPEN = 64  # shards kept open per process: one window of the order (16) for each of a few readers


@dataclass(frozen=True)
class _OpenShard:
    file: IO[bytes]
    size: int
    table: np.ndarray
    starts: np.ndarray
    """Number of each sample's first row, and one more behind the last."""


def open_shards(folder: Path, indexed: Indexed) -> TarShards:
    """The shards of a folder, or of one .tar file, in the order of their names.

    Indexes that are missing or stale are made; in a folder that cannot be written they stay in memory. `indexed` is
    what came of those that were made before, by this process or others.
    Logs what lies in the shards and is not used. Raises one DataError that lists every problem.
    """
    facts, indexed = read_facts(folder, indexed)
    if not any(item.summary.complete for item in facts.values()):
        raise DataError(
            f"{folder}: no sample has both a picture and a text (same name, .jpg and .json or .txt, in one shard):"
            f" {left_out_of(facts)}"
        )
    if indexed.unsaved:
        number = len(indexed.unsaved)
        log.warning("%s: cannot be written, so %d indexes are made anew by each process", folder, number)
    announce(folder, facts)
    return TarShards(facts, indexed.unsaved)


def read_facts(folder: Path, indexed: Indexed) -> tuple[dict[Path, ShardFacts], Indexed]:
    """What the indexes of a folder say, and `indexed` with those that were still to be made.

    Raises one DataError that lists every problem.
    """
    paths = find_shards(folder)
    found = {path: _facts(path, indexed) for path in paths}
    missing = [path for path in paths if found[path] is None and path not in indexed.problems]
    indexed = indexed | make_indexes(missing)
    found |= {path: _facts(path, indexed) for path in missing}
    if problems := [indexed.problems[path] for path in paths if path in indexed.problems]:
        noun = "problem" if len(problems) == 1 else "problems"
        raise DataError(
            "\n  - ".join([f"{folder}: {len(problems)} {noun} in {len(paths)} shards:", *problems])
        )
    return {path: facts for path, facts in found.items() if facts is not None}, indexed


def find_shards(folder: Path) -> list[Path]:
    """The .tar files of a folder, or the one that `folder` is. Raises DataError when there is none."""
    if problem := TAR.problem_of(folder):
        raise DataError(f"{folder}: {problem}")
    if folder.is_file():
        return [folder]
    paths = sorted(folder.glob("*.tar"))
    if special := [f"{path.name} is {kind}" for path in paths if (kind := special_kind(path))]:
        raise DataError(f"{folder}: {', '.join(special)}; move it away, shards are files")
    return paths


def _facts(path: Path, indexed: Indexed) -> ShardFacts | None:
    index = indexed.unsaved.get(path) or load(path)
    return facts_of(index) if index else None


def _content(path: Path, facts: ShardFacts) -> int:
    return int(facts.summary.content or xxhash.xxh3_64_hexdigest(os.fsencode(path.resolve())), 16)


class TarFormat:
    """Folders of tar shards, and single ones."""

    def problem_of(self, path: Path) -> str:
        if path.is_file() and path.suffix == ".tar":
            return ""
        if not path.is_dir():
            return f"{special_kind(path) or 'no such folder of tar shards'}; {MAKER} one"
        if unfinished := next(path.glob(f".*{PARTIAL}"), None):
            return f"a build into it is running or was cut off ({unfinished.name}); wait, or build it anew"
        if any(path.glob("*.tar")):
            return ""
        return f"no *.tar inside; {shards_below(path) or other_archives(path) or f'{MAKER} them'}"

    def prepare(self, path: Path, part: int, parts: int) -> Indexed:
        """Makes the indexes that are missing."""
        # a part of all shards, not of the missing ones: which are missing changes while others make them
        return make_indexes(unindexed(find_shards(path)[part::parts]))

    def open(self, path: Path, prepared: Sequence[Indexed]) -> TarShards:
        return open_shards(path, reduce(operator.or_, prepared))


TAR = TarFormat()


class TarShards:
    """`facts`: by path, in order. `counts`: int64, samples per shard. `fingerprint`: see data/fingerprint.py.

    Cheap to pickle; safe after a fork, because reading never moves a file's shared position.
    """

    def __init__(self, facts: dict[Path, ShardFacts], unsaved: dict[Path, Index]) -> None:
        self.facts = facts
        self.paths = list(facts)
        self.counts = np.array([item.samples for item in facts.values()], np.int64)
        self.fingerprint = str(fingerprint_of(facts))
        self._ends = np.cumsum(self.counts)
        self._unsaved = unsaved
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def contents(self) -> np.ndarray:
        """Of a shard whose index is of the older form, the place stands for the content."""
        return np.array([_content(path, facts) for path, facts in self.facts.items()], np.uint64)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def table(self, shard: int) -> np.ndarray:
        """The rows of shard number `shard`. Raises DataError when it has changed since the start."""
        path = self.paths[shard]
        index = self._unsaved.get(path) or load(path)
        if index is None or index.samples != self.counts[shard]:
            raise DataError(f"{path}: it or its index changed during the run; put it back or start anew")
        return index.table

    def key(self, number: int) -> str:
        """SHARD.tar:KEY of sample `number`, for messages; SHARD.tar#NUMBER where the shard cannot be read."""
        try:
            return self._key(*self._locate(number))
        except DataError:
            shard, local = self._place(number)
            return f"{self.paths[shard].name}#{local}"

    def read(self, number: int) -> RawSample:
        """Sample `number`. Raises DataError naming the sample when it has no picture or no valid text."""
        shard, rows = self._locate(number)
        with naming(self._key(shard, rows)) as key:
            images = self._of_kind(shard, rows, Kind.IMAGE)
            frames = self._of_kind(shard, rows, Kind.FRAME)
            if not images and not frames:
                raise DataError("no picture beside the text")
            return RawSample(key, images[0] if images else None, frames, self._text(shard, rows))

    def read_text(self, number: int) -> TextRecord:
        """The text of sample `number` alone. Raises DataError naming the sample."""
        shard, rows = self._locate(number)
        with naming(self._key(shard, rows)):
            return self._text(shard, rows)

    def _locate(self, number: int) -> tuple[int, np.ndarray]:
        """Shard number and index rows of a sample."""
        shard, local = self._place(number)
        opened = self._opened(shard)
        return shard, opened.table[opened.starts[local] : opened.starts[local + 1]]

    def _place(self, number: int) -> tuple[int, int]:
        """Shard number of a sample, and its number in there."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, number - int(self._ends[shard] - self.counts[shard])

    def _opened(self, shard: int) -> _OpenShard:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        table = np.asarray(self.table(shard))  # still a map of the file, without what memmap adds to each row
        starts = np.searchsorted(table["sample"], np.arange(self.counts[shard] + 1))
        try:
            file = self.paths[shard].open("rb", buffering=0)
        except OSError as error:
            raise DataError(f"{self.paths[shard]}: cannot be read: {error.strerror}") from None
        if len(self._open) >= MAX_OPEN:
            self._open.popitem(last=False)[1].file.close()
        self._open[shard] = _OpenShard(file, int(table[-1]["size"]), table, starts)
        return self._open[shard]

    def _key(self, shard: int, rows: np.ndarray) -> str:
        return f"{self.paths[shard].name}:{bytes(rows[0]['key']).decode('utf-8', 'replace')}"

    def _of_kind(self, shard: int, rows: np.ndarray, kind: Kind) -> list[bytes]:
        """The data of all members of one kind, frames in the order of their numbers."""
        found = sorted(rows[rows["kind"] == kind], key=lambda row: int(row["frame"]))
        return [self._bytes(shard, row) for row in found]

    def _bytes(self, shard: int, row: np.void) -> bytes:
        opened, offset, size = self._opened(shard), int(row["offset"]), int(row["size"])
        if not 0 <= offset <= offset + size <= opened.size:  # an index is untrusted: no 2**60 bytes are read
            raise DataError(f"the index points outside the shard; remove {self.paths[shard]}{SUFFIX}")
        try:
            data = os.pread(opened.file.fileno(), size, offset)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}") from None
        if len(data) < size:
            raise DataError(f"the shard was cut to less than {offset + size} bytes during the run")
        digest = int(row["digest"])
        if digest and xxhash.xxh3_64_intdigest(data) != digest:
            kind = Kind(row["kind"]).name.lower()
            raise DataError(f"damaged: the bytes of its {kind} are not those that the index was made of")
        return data

    def _text(self, shard: int, rows: np.ndarray) -> TextRecord:
        jsons = self._of_kind(shard, rows, Kind.JSON)
        record = parse_json(jsons[0]) if jsons else TextRecord([])
        if record.captions:
            return record
        txts = [decode_text(data) for data in self._of_kind(shard, rows, Kind.TXT)]
        if not jsons and not txts:
            raise DataError("no text (.json or .txt) beside the picture")
        return replace(record, captions=txts)
