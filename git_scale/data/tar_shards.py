"""Samples by number from a folder of tar shards.

    folder/NAME-000000.tar  + .index.npy  ->  TarShards  ->  read(number)  ->  RawSample (bytes and text)

Nothing is unpacked and nothing is decoded here: a sample is one `pread` per member.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash

from git_scale.data.captions import TextRecord, decode_text, parse_json
from git_scale.data.fingerprint import fingerprint_of
from git_scale.data.index import SUFFIX, ShardIndex, load
from git_scale.data.listing import list_shards, problem_of_shards
from git_scale.data.members import MemberKind
from git_scale.data.shard_report import announce, left_out_of
from git_scale.data.shard_survey import ShardSurvey, SurveyPart, examine, known_of, survey
from git_scale.data.store import RawSample, naming
from git_scale.errors import DataError

log = logging.getLogger(__name__)

MAX_OPEN = 64  # shards kept open per process: one window of the order (16) for each of a few readers


@dataclass(frozen=True)
class _OpenShard:
    file: IO[bytes]
    size: int
    table: np.ndarray
    starts: np.ndarray
    """Number of each sample's first row, and one more behind the last."""


class TarFormat:
    """Opens folders of tar shards, and single ones.

    Indexes that are missing or stale are made; in a folder that cannot be written they stay in memory.
    """

    def problem_of(self, path: Path) -> str:
        return problem_of_shards(path)

    def prepare(self, path: Path, part: int, parts: int) -> SurveyPart:
        """Looks at every `parts`-th shard, and makes the index that it lacks."""
        listing = list_shards(path)
        # a part of all shards, not of the missing ones: which are missing changes while others make them
        return examine(listing, known_of(listing), range(part, len(listing.names), parts))

    def open(self, path: Path, prepared: Sequence[SurveyPart]) -> TarShards:
        found = survey(path, prepared)
        if not found.table.rows["complete"].any():
            raise DataError(
                f"{path}: no sample has both an image and a text (same name, .jpg and .json or .txt, in one shard):"
                f" {left_out_of(found)}"
            )
        if number := len(found.unsaved):
            log.warning("%s: cannot be written, so %d indexes are made anew by each process", path, number)
        announce(found)
        return TarShards(found)


TAR = TarFormat()


class TarShards:
    """Gives the samples of the shards of a folder, in the order of their names.

    Cheap to pickle; safe after a fork, because reading never moves a file's shared position.
    """

    def __init__(self, survey: ShardSurvey) -> None:
        self.folder, self.shards = survey.listing.folder, survey.table
        self.counts = np.ascontiguousarray(survey.table.rows["samples"], np.int64)
        self.fingerprint = str(fingerprint_of(survey.table))
        self._unsaved = survey.unsaved
        self._ends = np.cumsum(self.counts)
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def contents(self) -> np.ndarray:
        """Of a shard whose index is of the older form, the place stands for the content."""
        found = self.shards.rows["content"].copy()
        for shard in np.flatnonzero(found == 0).tolist():
            found[shard] = xxhash.xxh3_64_intdigest(os.fsencode(self.path(shard).resolve()))
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def path(self, shard: int) -> Path:
        return self.folder / self.shards.name(shard)

    def table(self, shard: int) -> np.ndarray:
        """The rows of shard number `shard`. Raises DataError when it has changed since the start."""
        path, row = self.path(shard), self.shards.rows[shard]
        index = self._unsaved.get(path) or load(path)
        if (
            index is None
            or (index.samples, index.size) != (row["samples"], row["size"])
            or _differs(index, row)
        ):
            raise DataError(f"{path}: it or its index changed during the run; put it back or start anew")
        return index.table

    def key(self, number: int) -> str:
        """SHARD.tar:KEY of sample `number`, for messages; SHARD.tar#NUMBER where the shard cannot be read."""
        try:
            return self._key(*self._locate(number))
        except DataError:
            shard, local = self._place(number)
            return f"{self.shards.name(shard)}#{local}"

    def read(self, number: int) -> RawSample:
        """Sample `number`. Raises DataError naming the sample when it has no image or no valid text."""
        shard, rows = self._locate(number)
        with naming(self._key(shard, rows)) as key:
            images = self._of_kind(shard, rows, MemberKind.IMAGE)
            frames = self._of_kind(shard, rows, MemberKind.FRAME)
            videos = [] if frames else self._of_kind(shard, rows, MemberKind.VIDEO)
            if not images and not frames and not videos:
                raise DataError("no image beside the text")
            image, video = (found[0] if found else None for found in (images, videos))
            return RawSample(key, image, frames, self._text(shard, rows), video=video)

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
            file = self.path(shard).open("rb", buffering=0)
        except OSError as error:
            raise DataError(f"{self.path(shard)}: cannot be read: {error.strerror}") from None
        if len(self._open) >= MAX_OPEN:
            self._open.popitem(last=False)[1].file.close()
        self._open[shard] = _OpenShard(file, int(table[-1]["size"]), table, starts)
        return self._open[shard]

    def _key(self, shard: int, rows: np.ndarray) -> str:
        return f"{self.shards.name(shard)}:{bytes(rows[0]['key']).decode('utf-8', 'replace')}"

    def _of_kind(self, shard: int, rows: np.ndarray, kind: MemberKind) -> list[bytes]:
        """The data of all members of one kind, frames in the order of their numbers."""
        found = sorted(rows[rows["kind"] == kind], key=lambda row: int(row["frame"]))
        return [self._bytes(shard, row) for row in found]

    def _bytes(self, shard: int, row: np.void) -> bytes:
        opened, offset, size = self._opened(shard), int(row["offset"]), int(row["size"])
        if not 0 <= offset <= offset + size <= opened.size:  # an index is untrusted: no 2**60 bytes are read
            raise DataError(f"the index points outside the shard; remove {self.path(shard)}{SUFFIX}")
        try:
            data = os.pread(opened.file.fileno(), size, offset)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}") from None
        if len(data) < size:
            raise DataError(f"the shard was cut to less than {offset + size} bytes during the run")
        digest = int(row["digest"])
        if digest and xxhash.xxh3_64_intdigest(data) != digest:
            kind = MemberKind(row["kind"]).name.lower()
            raise DataError(f"damaged: the bytes of its {kind} are not those that the index was made of")
        return data

    def _text(self, shard: int, rows: np.ndarray) -> TextRecord:
        jsons = self._of_kind(shard, rows, MemberKind.JSON)
        record = parse_json(jsons[0]) if jsons else TextRecord([])
        if record.captions:
            return record
        txts = [decode_text(data) for data in self._of_kind(shard, rows, MemberKind.TXT)]
        if not jsons and not txts:
            raise DataError("no text (.json or .txt) beside the image")
        return replace(record, captions=txts)


def _differs(index: ShardIndex, row: np.void) -> bool:
    """Whether a shard holds something else than what a start has seen, as far as both know."""
    content = int(index.summary.content or "0", 16)
    return 0 not in (content, row["content"]) and content != row["content"]
