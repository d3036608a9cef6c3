"""A share of a source: the first samples of each of its parts, for studies of how a score grows with data.

    share 0.1 of parts with 10,000, 10,000 and 4 samples: their first 1,000, 1,000 and 1

The same samples whatever else a run is; those of a smaller share are among those of a larger one.
"""

from __future__ import annotations

import math

import numpy as np

from git_scale.data.captions import TextRecord
from git_scale.data.fingerprint import mixed_fingerprint
from git_scale.data.store import RawSample, SampleStore


class StoreShare:
    """The samples of a store that lie in the first `share` of each part."""

    def __init__(self, store: SampleStore, share: float) -> None:
        self._store = store
        self.counts = np.array([math.ceil(share * count) for count in store.counts.tolist()], np.int64)
        self.contents = store.contents
        self.fingerprint = mixed_fingerprint([(f"the first {share} of each part", store.fingerprint)])
        self._ends = np.cumsum(self.counts)
        self._firsts = np.cumsum(store.counts) - store.counts

    def __len__(self) -> int:
        return int(self._ends[-1])

    def key(self, number: int) -> str:
        return self._store.key(self._place(number))

    def read(self, number: int) -> RawSample:
        return self._store.read(self._place(number))

    def read_text(self, number: int) -> TextRecord:
        return self._store.read_text(self._place(number))

    def _place(self, number: int) -> int:
        """The sample's number in the store."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        part = int(np.searchsorted(self._ends, number, side="right"))
        return int(self._firsts[part]) + number - int(self._ends[part] - self.counts[part])
