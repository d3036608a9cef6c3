"""One way to hear a stop: a signal sets a flag, and every long piece of work looks at it between two units.

    with StopRequest():
        for shard in shards:
            check_stop()  # raises Stopped once a signal has come
            make_index(shard)

The training loop asks the flag itself (its ranks agree on the step to stop at); what one process does alone, or what
ranks agree on otherwise (indexing, building, an evaluation), raises Stopped, and the tool ends with its code.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Self

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""SIGUSR1: what SLURM scripts ask for ahead of the time limit."""


class Stopped(Exception):  # noqa: N818 - no error: it was asked for
    """A stop was asked for before a piece of work was done; the same command does it, or what is left of it."""


class StopRequest:
    """True once a stop signal has come. A second one ends the process at once, as without a handler."""

    _current: StopRequest | None = None

    def __init__(self) -> None:
        self._stopped = False
        self._outer: StopRequest | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __bool__(self) -> bool:
        return self._stopped

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        self._outer, StopRequest._current = StopRequest._current, self
        return self

    def __exit__(self, *_: object) -> None:
        StopRequest._current = self._outer
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._stopped = True
        signal.signal(number, signal.SIG_DFL)


def stop_requested() -> bool:
    """Whether this process was asked to stop; False where nobody listens (no StopRequest is entered)."""
    return bool(StopRequest._current)


def check_stop() -> None:
    """Raises Stopped when this process was asked to stop: to be called between two units of a long piece of work."""
    if stop_requested():
        raise Stopped
