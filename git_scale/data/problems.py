"""Samples that cannot be used, counted by reason: one message in the place of thousands."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Self

MAX_REASONS, MAX_EXAMPLES, MAX_SHOWN = 100, 3, 6


class ProblemCounts:
    """Counts how often each reason came, with a few of the samples that it came for; small, whatever is added."""

    def __init__(self, problems: Iterable[str] = ()) -> None:
        """`problems`: KEY: what is wrong, as DataError says it of a sample."""
        self._counts = Counter[str]()
        self._examples: dict[str, list[str]] = {}
        for problem in problems:
            key, _, text = problem.partition(": ")
            # numbers (bytes, sizes, positions) differ from sample to sample
            self._add(re.sub(r"\d+", "N", text) or "no reason known", 1, [key])

    def __iadd__(self, other: Self) -> Self:
        for reason, count in other._counts.items():
            self._add(reason, count, other._examples[reason])
        return self

    def __bool__(self) -> bool:
        return bool(self._counts)

    def __str__(self) -> str:
        """A line per reason, the most frequent first."""
        shown = self._counts.most_common(MAX_SHOWN)
        lines = [f"  {count} x {reason} ({', '.join(self._examples[reason])})" for reason, count in shown]
        if rest := self._counts.total() - sum(count for _, count in shown):
            lines.append(f"  {rest} for {len(self._counts) - len(shown)} other reasons")
        return "\n".join(lines)

    def _add(self, reason: str, count: int, examples: list[str]) -> None:
        if reason not in self._counts and len(self._counts) >= MAX_REASONS:
            reason = "other reasons"
        self._counts[reason] += count
        known = self._examples.setdefault(reason, [])
        known += examples[: MAX_EXAMPLES - len(known)]


def describe_share(part: int, whole: int) -> str:
    """`3 of 200 (1.5 %)`."""
    return f"{part:,} of {whole:,} ({100 * part / max(whole, 1):.3g} %)"
