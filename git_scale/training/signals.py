"""Stopping well: a signal sets a flag, the loop saves and leaves at the end of its step."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Self

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""SIGUSR1: what SLURM scripts ask for ahead of the time limit."""


class StopRequest:
    """True once a stop signal has come. A second one ends the process at once, as without a handler."""

    def __init__(self) -> None:
        self._stopped = False
        self._previous: dict[signal.Signals, object] = {}

    def __bool__(self) -> bool:
        return self._stopped

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._stopped = True
        signal.signal(number, signal.SIG_DFL)
