"""Which sample stands at which position of the endless training stream: integer arithmetic, nothing else.

    epoch 0                                   epoch 1
    | window 0      | window 1      | ... |   | window 0 ...
      16 shards, drawn anew each epoch;
      inside a window all samples are permuted

One permutation of everything would be simpler, but for 1e9 samples it is 8 GB per process, minutes to make,
and every sample is read from another file. A window of 16 shards of 10,000 samples is 1.3 MB, made in
milliseconds, and keeps 16 files open, which are read to their end before the next ones are begun.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from git_scale.errors import DataError


class Order(Protocol):
    """Says which sample is trained on when."""

    def sample(self, position: int) -> tuple[int, int]:
        """(epoch, number of the sample) at `position` of the stream."""


def permutation(seed: int, epoch: int, purpose: int, size: int, stream: int = 0) -> np.ndarray:
    """A permutation of range(size), a pure function of its arguments.

    Made of raw generator output, which numpy keeps the same for ever; its Generator.permutation may change.
    """
    entropy = (seed, epoch, stream) if stream else (seed, epoch)
    raw = np.random.PCG64(np.random.SeedSequence(entropy, spawn_key=(purpose,))).random_raw(size)
    return np.argsort(raw, kind="stable")


class SampleOrder:
    """The order of `counts[shard]` samples per shard. Every epoch holds every sample exactly once.

    Two sources of a mixture are of two streams: with one, those of equal counts would come in the same order.
    """

    def __init__(self, counts: np.ndarray, seed: int, window_shards: int = 16, stream: int = 0) -> None:
        self.counts = np.asarray(counts, np.int64)
        self.size = int(self.counts.sum())
        if self.size < 1:
            raise DataError("no samples to put in order")
        self.seed, self.stream = seed, stream
        self.window_shards = window_shards
        self._firsts = np.cumsum(self.counts) - self.counts
        self._epoch = self._window = -1

    def sample(self, position: int) -> tuple[int, int]:
        """(epoch, index) at `position` of the stream; the cost does not depend on the position."""
        epoch, offset = divmod(position, self.size)
        if epoch != self._epoch:
            self._enter_epoch(epoch)
        window = int(np.searchsorted(self._window_ends, offset, side="right"))
        if window != self._window:
            self._enter_window(window)
        return epoch, int(self._samples[offset - self._window_first])

    def _enter_epoch(self, epoch: int) -> None:
        self._epoch, self._window = epoch, -1
        self._shards = permutation(self.seed, epoch, 0, len(self.counts), self.stream)
        ends = np.cumsum(self.counts[self._shards])
        self._window_ends = np.append(ends[self.window_shards - 1 : -1 : self.window_shards], ends[-1])

    def _enter_window(self, window: int) -> None:
        """Lays the samples of the window's shards end to end, then permutes them."""
        self._window = window
        self._window_first = int(self._window_ends[window - 1]) if window else 0
        shards = self._shards[window * self.window_shards : (window + 1) * self.window_shards]
        samples = np.concatenate(
            [np.arange(self._firsts[shard], self._firsts[shard] + self.counts[shard]) for shard in shards]
        )
        self._samples = samples[permutation(self.seed, self._epoch, 1 + window, len(samples), self.stream)]
