"""Samples that could not be used, of all ranks: said with their reasons, and the end of a run that has too many."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable

from git_scale.data.problems import ProblemCounts, describe_share
from git_scale.parallel.comm import DP

log = logging.getLogger(__name__)

WINDOW = 10_000
"""Samples, the latest of all ranks, whose share of unusable ones counts."""

ENOUGH = 1_000
"""Samples from which on a share says something."""

FIRST = 64
"""Samples at the start of a run that end it when none of them can be used."""


class BadSamples:
    """Counts what every rank counts alike, so that all of them come to the same verdict."""

    def __init__(self, max_share: float, recent: tuple[int, int]) -> None:
        """`max_share`: data.max_bad_share. `recent`: samples and unusable ones among them, of an earlier start."""
        self._max_share = max_share
        self._steps = deque([recent])
        self._samples, self._bad = recent
        self._reasons, self._unsaid = ProblemCounts(), ProblemCounts()  # this rank's
        self._unsaid_samples = self._unsaid_bad = 0

    @property
    def recent(self) -> tuple[int, int]:
        """Samples and unusable ones among them, for the next start."""
        return self._samples, self._bad

    @property
    def are_too_many(self) -> bool:
        if self._max_share == 1:
            return False
        if self._samples < ENOUGH:
            return FIRST <= self._samples == self._bad
        return self._bad > self._max_share * self._samples

    def record(self, samples: int, bad: int, problems: Iterable[str]) -> None:
        """One step of all ranks, with this rank's messages."""
        self._steps.append((samples, bad))
        self._samples, self._bad = self._samples + samples, self._bad + bad
        while self._samples - self._steps[0][0] >= WINDOW:
            gone, gone_bad = self._steps.popleft()
            self._samples, self._bad = self._samples - gone, self._bad - gone_bad
        self._unsaid_samples, self._unsaid_bad = self._unsaid_samples + samples, self._unsaid_bad + bad
        self._unsaid += ProblemCounts(problems)

    def say(self, step: int) -> None:
        """Logs what came since the last time. Collective where anything did."""
        if self._unsaid_bad:
            found = describe_share(self._unsaid_bad, self._unsaid_samples)
            log.warning("step %d: %s samples could not be used:\n%s", step, found, _of_all(self._unsaid))
        self._reasons += self._unsaid
        self._unsaid, self._unsaid_samples, self._unsaid_bad = ProblemCounts(), 0, 0

    def explain(self, step: int) -> None:
        """Logs why the run ends. Collective."""
        self._reasons += self._unsaid
        log.warning(
            "step %d: the run ends, with a checkpoint and exit code 76: %s of the latest samples cannot be used"
            " (data.max_bad_share=%g):\n%s\nMend the data and run the same command, or set data.max_bad_share higher"
            " (1: no bound, as long as some can be used).",
            step,
            describe_share(self._bad, self._samples),
            self._max_share,
            _of_all(self._reasons),
        )


def _of_all(mine: ProblemCounts) -> ProblemCounts:
    """The reasons of all data-parallel ranks."""
    everything = ProblemCounts()
    for reasons in DP.gather_objects(mine):
        everything += reasons
    return everything
