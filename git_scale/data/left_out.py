"""What a shard holds and no sample can use, or what may not be as it was meant: counted by reason, and said."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

MAX_EXAMPLE = 120  # characters
MAX_REASONS = 8  # endings of unknown kinds that are told apart: a forged shard may have any number

# of samples; all others are of members
NO_TEXT, NO_IMAGE = "no text of the image's name", "no image of the text's name"
SAME_NAME, OTHER_SHARDS = "name of another sample of the shard", "name of a sample of another shard"
SECOND_IMAGE = "second image of one name"
OTHER_TEXT = "text beside another that is read in its place"
SEVERAL_LINES = "text of several lines, read as one caption (one caption per line belongs in a json list)"
OF_SAMPLES = (NO_TEXT, NO_IMAGE, SAME_NAME, OTHER_SHARDS, SECOND_IMAGE, OTHER_TEXT, SEVERAL_LINES)

_ENDING = re.compile(r"\.([A-Za-z0-9_-]{1,12})$")


class LeftOut(NamedTuple):
    """Says how many members or samples are not used for one reason, with the name of the first."""

    reason: str
    number: int
    example: str


class LeftOutCounts:
    """Counts what is not used by reason, with the first example of each."""

    def __init__(self, items: Iterable[LeftOut] = ()) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        for reason, number, example in items:
            self.add(reason, example, number)

    def add(self, reason: str, example: str, number: int = 1) -> None:
        self._counts[reason] += number
        self._examples.setdefault(reason, example[:MAX_EXAMPLE])

    def add_unknown(self, name: str) -> None:
        found = _ENDING.search(name)
        reason = f"unknown kind .{found[1].lower()}" if found else "unknown kind"
        if reason not in self._counts and len(self._counts) >= MAX_REASONS:
            reason = "unknown kind"
        self.add(reason, name)

    def listed(self) -> tuple[LeftOut, ...]:
        """The most frequent first."""
        return tuple(
            LeftOut(reason, number, self._examples[reason]) for reason, number in self._counts.most_common()
        )

    def describe(self, samples: int, members: int) -> str:
        """`no text of the image's name: 12 of 30 samples (40 %), e.g. 'a'; hidden file: ...`; empty for nothing."""
        parts = []
        for reason, number, example in self.listed():
            noun, total = ("samples", samples) if reason in OF_SAMPLES else ("members", members)
            share = 100 * number / max(total, 1)
            percent = f"{share:.2g}" if share < 99.5 else f"{share:.0f}"
            parts.append(f"{reason}: {number:,} of {total:,} {noun} ({percent} %), e.g. {example!r}")
        return "; ".join(parts)
