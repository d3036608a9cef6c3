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
MAX_DEATHS = 3  # items in a row that a worker died of: it is not the items then, but the machine


def map_in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    died_of: Callable[[Item], Result] | None = None,
    batch_size: int = BATCH,
) -> Iterator[Result]:
    """`map(function, items)` over `workers` processes; with 1, in this one. `function` must be picklable.

    `batch_size`: items per hand-over; 1 where each takes seconds.

    An item that a worker dies of, as under the system's hunt for memory, gives `died_of(item)`. Raises DataError
    without that, or when item after item ends so; Stopped when a stop was asked for, even while a worker hangs.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    pool = _Pool(workers)
    pending: deque[tuple[list[Item], Future[list[Result]]]] = deque()
    source = iter(items)
    try:
        while True:
            while len(pending) <= workers * BATCHES_AHEAD and (batch := list(islice(source, batch_size))):
                pending.append((batch, pool.submit(function, batch)))
            if not pending:
                break
            batch, future = pending.popleft()
            try:
                yield from _result_of(future)
            except BrokenProcessPool:  # one of the batches in hand has killed a worker, and all are lost
                pool.restart()
                yield from _one_by_one(pool, function, batch, died_of)
                pending = deque((batch, pool.submit(function, batch)) for batch, _ in pending)
    except BaseException:  # GeneratorExit too: nobody waits for a worker that may hang
        pool.kill()
        raise
    pool.close()


class _Pool:
    """A pool of processes that can be begun anew."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._others = set(active_children())
        self.restart()

    def restart(self) -> None:
        self._kill_workers()  # those that a broken pool has left: it only asks them to end, and waits for ever
        # spawn: a fork of a process in which torch has started its threads can hang
        self._pool = ProcessPoolExecutor(self._workers, get_context("spawn"), initializer=_begin_worker)

    def submit(self, function: Callable[[Item], Result], batch: list[Item]) -> Future[list[Result]]:
        try:
            return self._pool.submit(_apply, function, batch)
        except BrokenProcessPool as error:
            failed: Future[list[Result]] = Future()
            failed.set_exception(error)
            return failed

    def close(self) -> None:
        self._pool.shutdown()

    def kill(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._kill_workers()

    def _kill_workers(self) -> None:
        """They do not hear the signal that would end them, which a whole job gets."""
        for worker in set(active_children()) - self._others:
            worker.kill()


def _one_by_one(
    pool: _Pool,
    function: Callable[[Item], Result],
    batch: list[Item],
    died_of: Callable[[Item], Result] | None,
) -> Iterator[Result]:
    """The batch's results with nothing else in hand, so that an item that kills its worker is known."""
    deaths = 0
    for item in batch:
        try:
            yield from _result_of(pool.submit(function, [item]))
            deaths = 0
        except BrokenProcessPool:
            deaths += 1
            if died_of is None or deaths == MAX_DEATHS:
                name = getattr(item, "file", item)
                raise DataError(
                    f"a worker process died of {name!r}, as it does when the system lacks memory;"
                    " take fewer --workers"
                ) from None
            pool.restart()
            yield died_of(item)


def _result_of(future: Future[list[Result]]) -> list[Result]:
    while not future.done():
        wait([future], timeout=LOOK_EVERY)
        check_stop()
    return future.result()


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
