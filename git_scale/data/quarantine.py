"""Samples whose reading has killed a loader worker, or has hung: after the second time they are not read again.

    RUN_DIR/quarantine.jsonl    a line for each time: data, sample, cause, host, process, time

A quarantined sample keeps its place without targets. Removing its lines lets it be read again.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections import Counter
from pathlib import Path

log = logging.getLogger(__name__)

FILE = "quarantine.jsonl"
ENOUGH = 2
"""Times after which a sample is not read again: once may have been the fault of something else, as of memory."""


class Quarantine:
    """Remembers samples of one folder of shards, by key."""

    def __init__(self, path: Path | None = None, data: str = "") -> None:
        """`path`: of the file; none: what happens is remembered by this process alone.

        `data`: train, heldout, or heldout/NAME of a source.
        """
        self._path, self._data = path, data
        self._times = Counter[str]()
        self._read()

    def __contains__(self, key: str) -> bool:
        return self._times[key] >= ENOUGH

    def __bool__(self) -> bool:
        return bool(self.held)

    @property
    def held(self) -> list[str]:
        return [key for key, times in self._times.items() if times >= ENOUGH]

    @property
    def where(self) -> str:
        return str(self._path or "in this process")

    def record(self, key: str, cause: str) -> None:
        """Counts one more time, and those that other ranks have written meanwhile."""
        self._times[key] += 1
        if self._path is None:
            return
        line = {
            "data": self._data,
            "sample": key,
            "cause": cause,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        try:
            # one write of one line at the end: whole beside those of other ranks
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(handle, (json.dumps(line) + "\n").encode())
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            log.error(
                "%s: cannot be written: %s; %s is remembered until the end", self._path, error.strerror, key
            )
        else:
            self._read()

    def _read(self) -> None:
        if self._path is None or not self._path.is_file():
            return
        written = Counter[str]()
        for line in self._path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
                if entry["data"] == self._data:
                    written[str(entry["sample"])] += 1
            except (ValueError, TypeError, KeyError):
                log.warning("%s: a line that is no record is passed over: %r", self._path, line[:100])
        self._times |= written
