"""A map over processes that keeps the order and a bounded number of results in memory."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import active_children, get_context, parent_process
from threading import Thread
from typing import TypeVar

from git_scale.errors import DataError
from git_scale.stop import STOP_SIGNALS, check_stop

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCH = 32  # items per hand-over: a scene takes about a millisecond, a pickle round trip a tenth of that
BATCHES_AHEAD = 4  # per worker: enough that none waits for the writer's fsync
LOOK_EVERY = 0.5  # seconds between two looks at the stop request while a worker works


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`map(function, items)` over `workers` processes; with 1, in this one. `function` must be picklable.

    Raises Stopped when a stop was asked for, even while a worker hangs, and DataError when a worker dies.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    others = set(active_children())
    # spawn: a fork of a process in which torch has started its threads can hang
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin_worker)
    pending: deque[tuple[list[Item], Future[list[Result]]]] = deque()
    source = iter(items)
    try:
        while batch := list(islice(source, BATCH)):
            pending.append((batch, pool.submit(_apply, function, batch)))
            if len(pending) > workers * BATCHES_AHEAD:
                yield from _result_of(*pending.popleft())
        while pending:
            yield from _result_of(*pending.popleft())
        pool.shutdown()
    except BaseException:  # GeneratorExit too: nobody waits for a worker that may hang
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in set(active_children()) - others:
            worker.kill()
        raise


def _result_of(batch: list[Item], future: Future[list[Result]]) -> list[Result]:
    while not future.done():
        wait([future], timeout=LOOK_EVERY)
        check_stop()
    try:
        return future.result()
    except BrokenProcessPool:
        raise DataError(
            "a worker process died, as it does when the system lacks memory, at or soon after"
            f" {getattr(batch[0], 'file', batch[0])!r}; take fewer --workers, or leave out the item that kills it"
        ) from None


def _apply(function: Callable[[Item], Result], batch: list[Item]) -> list[Result]:
    return [function(item) for item in batch]


def _begin_worker() -> None:
    """The parent alone hears the signals that a whole job gets; and no worker outlives it."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)
