"""What a start knows of the shards of a folder: columns with a row per shard, since there may be 100,000 of them.

names        rows: size   samples  complete  content   digests      left_out: shard  reason             number
a/000.tar        256000      1000      1000  91f2...         0                    0  unknown kind .cls    1000
a/001.tar        512000      1000       998  07ac...   5be1...                    1  no text of ...          2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from git_scale.data.index import ShardIndex
from git_scale.data.left_out import LeftOut, LeftOutCounts

ROW = np.dtype(
    [
        *((name, "<i8") for name in ("size", "time", "samples", "members", "complete")),
        *((name, "<u8") for name in ("content", "digests")),
    ]
)
"""`time`: when the shard was written, in ns. `content`, `digests`: as in ShardSummary; 0 for what is not known."""


def left_out_dtype(reason_bytes: int, example_bytes: int) -> np.dtype:
    texts = [("reason", f"S{max(reason_bytes, 1)}"), ("example", f"S{max(example_bytes, 1)}")]
    return np.dtype([("shard", "<i8"), ("number", "<i8"), *texts])


@dataclass(frozen=True)
class ShardTable:
    """Holds what a start knows of each shard, in columns."""

    names: np.ndarray
    """bytes [shards], as the file system has them."""
    rows: np.ndarray
    """ROW [shards]."""
    left_out: np.ndarray
    """left_out_dtype [any]: what the shards hold and is not used, by shard."""

    def __len__(self) -> int:
        return len(self.rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardTable) and all(map(np.array_equal, self._columns(), other._columns()))

    def _columns(self) -> list[np.ndarray]:
        """Those of texts one by one: two tables may have other widths for them."""
        return [self.names, self.rows, *(self.left_out[name] for name in left_out_dtype(1, 1).names or ())]

    @property
    def samples(self) -> int:
        return int(self.rows["samples"].sum())

    def name(self, number: int) -> str:
        return decoded(self.names[number])

    def places(self, names: np.ndarray) -> np.ndarray:
        """The number of each of `names`, the last one where it stands twice; -1 where it is not there."""
        if np.array_equal(self.names, names):
            return np.arange(len(self))
        numbers = {name: number for number, name in enumerate(self.names.tolist())}
        return np.array([numbers.get(name, -1) for name in names.tolist()], np.int64)

    def taken(self, numbers: np.ndarray) -> ShardTable:
        """The rows of these numbers, in their order."""
        place = np.full(len(self), -1)
        place[numbers] = np.arange(len(numbers))
        left_out = self.left_out[place[self.left_out["shard"]] >= 0].copy()
        left_out["shard"] = place[left_out["shard"]]
        return ShardTable(
            self.names[numbers], self.rows[numbers], left_out[np.argsort(left_out["shard"], kind="stable")]
        )

    def reasons(self) -> LeftOutCounts:
        """What is left out, over all shards, with the first example of each reason."""
        found = LeftOutCounts()
        reasons, firsts, places = np.unique(self.left_out["reason"], return_index=True, return_inverse=True)
        totals = np.bincount(places, weights=self.left_out["number"], minlength=len(reasons))
        for number in np.argsort(firsts):
            example = decoded(self.left_out["example"][firsts[number]])
            found.add(decoded(reasons[number]), example, int(totals[number]))
        return found

    def reasons_of(self, number: int) -> LeftOutCounts:
        rows = self.left_out[slice(*np.searchsorted(self.left_out["shard"], [number, number + 1]))]
        return LeftOutCounts(
            LeftOut(decoded(row["reason"]), int(row["number"]), decoded(row["example"])) for row in rows
        )


def encoded(text: str) -> bytes:
    """File names and texts as bytes, whatever they were before; `decoded` gives them back."""
    return text.encode("utf-8", "surrogateescape")


def decoded(data: bytes) -> str:
    return bytes(data).decode("utf-8", "surrogateescape")


def table_of(name: str, index: ShardIndex, time: int) -> ShardTable:
    """Of one shard, which was written at `time`."""
    summary = index.summary
    content, digests = (int(digest or "0", 16) for digest in (summary.content, summary.digests))
    row = (index.size, time, index.samples, summary.members, summary.complete, content, digests)
    reasons = [encoded(item.reason) for item in summary.left_out]
    examples = [encoded(item.example) for item in summary.left_out]
    widths = [max(map(len, texts), default=0) for texts in (reasons, examples)]
    left_out = np.zeros(len(reasons), left_out_dtype(*widths))
    left_out["number"] = [item.number for item in summary.left_out]
    left_out["reason"], left_out["example"] = reasons, examples
    return ShardTable(np.array([encoded(name)]), np.array([row], ROW), left_out)


def joined(tables: Sequence[ShardTable]) -> ShardTable:
    """The rows of all, one table's behind another's."""
    if not tables:
        return ShardTable(np.array([], "S1"), np.array([], ROW), np.array([], left_out_dtype(1, 1)))
    firsts = np.cumsum([0, *map(len, tables)])
    widths = [max(table.left_out.dtype[name].itemsize for table in tables) for name in ("reason", "example")]
    left_out = np.concatenate([table.left_out.astype(left_out_dtype(*widths)) for table in tables])
    left_out["shard"] += np.repeat(firsts[:-1], [len(table.left_out) for table in tables])
    return ShardTable(
        np.concatenate([table.names for table in tables]),
        np.concatenate([table.rows for table in tables]),
        left_out,
    )
