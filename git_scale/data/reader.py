"""The reading of samples, under watch: which sample is being read, and since when, outlives its reader."""

from __future__ import annotations

import time

import numpy as np

from git_scale.data.quarantine import Quarantine
from git_scale.data.store import RawSample, SampleStore
from git_scale.errors import DataError

IDLE = -1


class WatchedReader:
    """Reads samples by number. `place`, int64 [2], tells who watches the sample's number, or IDLE, and the time."""

    def __init__(self, store: SampleStore, quarantine: Quarantine | None = None) -> None:
        self.store = store
        self.quarantine = Quarantine() if quarantine is None else quarantine
        self.place = np.array([IDLE, 0], np.int64)

    def read(self, number: int) -> RawSample:
        """Raises DataError, naming the sample, when it cannot be used. What is done with it is under watch, too."""
        self.place[1] = time.monotonic_ns()
        self.place[0] = number
        if self.quarantine and (key := self.store.key(number)) in self.quarantine:
            raise DataError(f"{key}: quarantined, because its reader died or hung ({self.quarantine.where})")
        return self.store.read(number)

    def rest(self) -> None:
        """Nothing is being read."""
        self.place[0] = IDLE

    def key(self, number: int) -> str:
        return self.store.key(number)
