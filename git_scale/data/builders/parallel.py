"""A map over processes that keeps the order and a bounded number of results in memory."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCH = 32  # items per hand-over: a scene takes about a millisecond, a pickle round trip a tenth of that
BATCHES_AHEAD = 4  # per worker: enough that none waits for the writer's fsync


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`map(function, items)` over `workers` processes; with 1, in this one. `function` must be picklable."""
    if workers <= 1:
        yield from map(function, items)
        return
    # spawn: a fork of a process in which torch has started its threads can hang
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_leave_interrupts_to_parent)
    pending: deque[Future[list[Result]]] = deque()
    source = iter(items)
    try:
        while batch := list(islice(source, BATCH)):
            pending.append(pool.submit(_apply, function, batch))
            if len(pending) > workers * BATCHES_AHEAD:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _apply(function: Callable[[Item], Result], batch: list[Item]) -> list[Result]:
    return [function(item) for item in batch]


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
