"""One way to hear a stop: a signal sets a flag, and every long piece of work looks at it between two units.

    with StopRequest():
        for shard in shards:
            check_stop()  # raises Stopped once a signal has come
            make_index(shard)

SIGUSR1 in training, as SLURM sends it ahead of the time limit: the rank that gets it sets its flag; in the next step
(`Trainer.train_step`) the flag is summed with the losses, so that all ranks know of it; all of them end after that
step (`Trainer.fit`), write a checkpoint and exit with code 75, and the same command goes on from there.

What one process does alone, or what ranks agree on otherwise (indexing, building, an evaluation), raises Stopped, and
the tool ends with its code.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Generic, Self, TypeVar

T = TypeVar("T")

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
        self._stopped = self._stopped or bool(self._outer)  # what was asked for before is asked for still
        return self

    def __exit__(self, *_: object) -> None:
        StopRequest._current = self._outer
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def ask(self) -> None:
        """Sets the flag as a signal would: a process is also stopped by its peers, or by the loss of its launcher."""
        self._stopped = True

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.ask()
        signal.signal(number, signal.SIG_DFL)


def stop_requested() -> bool:
    """Whether this process was asked to stop; False where nobody listens (no StopRequest is entered)."""
    return bool(StopRequest._current)


def check_stop() -> None:
    """Raises Stopped when this process was asked to stop: to be called between two units of a long piece of work."""
    if stop_requested():
        raise Stopped


def request_stop() -> None:
    """Asks this process to stop; without effect where nobody listens."""
    if StopRequest._current is not None:
        StopRequest._current.ask()


class BackgroundWork(threading.Thread, Generic[T]):
    """Runs `action` in a thread of its own, so that the main thread hears signals while it lasts.

    A process that ends does not wait for it: what it writes must be whole or absent.
    """

    def __init__(self, action: Callable[[], T]) -> None:
        super().__init__(daemon=True)
        self._action = action
        self._results: list[T] = []
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._results.append(self._action())
        except BaseException as error:
            self.error = error

    @property
    def is_done(self) -> bool:
        return not self.is_alive()

    def result(self) -> T:
        """Of an action that is done; raises what it raised."""
        if self.error is not None:
            raise self.error
        return self._results[0]


def listening(action: Callable[[], T]) -> T:
    """The result of an action that cannot look at the request itself. Raises Stopped once a stop is asked for."""
    work = BackgroundWork(action)
    while not work.is_done:
        work.join(0.1)
        if not work.is_done:
            check_stop()
    return work.result()
