"""Batches in the order of their tasks, made in this process or by workers; no wait for one is without an end.

A wait hears a stop request within a second, and ends the run (resumable) when a sample takes longer than
`data.sample_timeout_s`. A worker that dies is replaced and its batches are made anew, in their places; the sample
that it was reading is named, and quarantined the second time.
"""

from __future__ import annotations

import logging
import mmap
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from git_scale.data.reader import IDLE, WatchedReader
from git_scale.data.workers import Arrivals, FailedBatch, LoaderWorker, MadeBatch, WorkerDeath
from git_scale.errors import LoaderError
from git_scale.stop import BackgroundWork, Stopped, check_stop

log = logging.getLogger(__name__)

PREFETCH = 4  # batches per worker: rides out a slow read, at 5 MB per batch of 32 images
POLL_S = 0.5  # between two looks at the stop request
MAX_DEATHS, WITHIN = 10, 1_000  # workers that may die within so many batches


@dataclass(frozen=True)
class BatchSource:
    """Makes batches: `make` turns a task into one and reads through `reader`."""

    reader: WatchedReader
    make: Callable[[Any], Any]
    finish: Callable[[Any], Any]
    """Looks a batch over in this process, beside the main thread: pins its memory."""
    timeout_s: float

    def name(self, number: int) -> str | None:
        """Of a sample that is being read, if one is."""
        if number == IDLE:
            return None
        naming = BackgroundWork(lambda: self.reader.key(number))  # which may hang on the same file system
        naming.join(POLL_S)
        return naming.result() if naming.is_done else f"sample number {number}"

    def check(self, place: np.ndarray) -> None:
        """Raises Stopped when a sample takes too long."""
        waited_s = (time.monotonic_ns() - int(place[1])) / 1e9
        if place[0] != IDLE and waited_s > self.timeout_s and (name := self.name(int(place[0]))):
            self.reader.quarantine.record(name, f"hung for {waited_s:.0f} s")
            raise Stopped(
                f"{name}: has been read for {waited_s:.0f} s (data.sample_timeout_s={self.timeout_s:g}): its file"
                " system does not answer; the same command goes on, without this sample from the third time on"
            )


def batches_in_process(source: BatchSource, tasks: Iterable[Any]) -> Iterator[Any]:
    """Each is made when it is asked for, in a thread, so that the wait for a read that hangs is bounded here, too."""
    for task in tasks:
        work = BackgroundWork(lambda task=task: source.finish(source.make(task)))  # type: ignore[misc]
        while True:
            work.join(POLL_S)
            if work.is_done:
                break
            check_stop()
            source.check(source.reader.place)
        yield work.result()


class WorkerBatches(Iterator[Any]):
    """Yields batches that `workers` processes make ahead: task n by worker n modulo their number."""

    def __init__(self, source: BatchSource, tasks: Iterable[Any], workers: int) -> None:
        self._source = source
        self._tasks = enumerate(tasks)
        self._open: dict[int, Any] = {}  # tasks that were handed out, by number
        self._made: dict[int, Any] = {}
        self._next = 0
        self._deaths: deque[int] = deque(maxlen=MAX_DEATHS)
        self._arrivals: Arrivals = queue.SimpleQueue()
        shared = mmap.mmap(-1, 16 * workers)  # anonymous: it stays with those that are forked
        self._places = np.frombuffer(shared, np.int64).reshape(workers, 2)
        self._places[:, 0] = IDLE
        self._workers = [self._start(place) for place in self._places]
        for _ in range(PREFETCH * workers):
            self._hand_out()

    def __next__(self) -> Any:
        if not self._open and not self._made:
            self.close()
            raise StopIteration
        while self._next not in self._made:
            self._await()
        batch = self._made.pop(self._next)
        self._next += 1
        self._hand_out()
        return batch

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        for worker in self.__dict__.get("_workers", []):
            worker.end()

    def _start(self, place: np.ndarray) -> LoaderWorker:
        place[0] = IDLE
        source = self._source

        def make(task: Any) -> Any:
            source.reader.place = place
            return source.make(task)

        return LoaderWorker(make, place, self._arrivals, source.finish)

    def _hand_out(self) -> None:
        for number, task in self._tasks:
            self._open[number] = task
            self._workers[number % len(self._workers)].ask(number, task)
            break

    def _await(self) -> None:
        """What comes next from any worker; or a look at the stop request and at those that take long."""
        try:
            worker, answer = self._arrivals.get(timeout=POLL_S)
        except queue.Empty:
            check_stop()
            for place in self._places:
                self._source.check(place)
            return
        if isinstance(answer, MadeBatch):
            del self._open[answer.number]
            self._made[answer.number] = answer.batch
        elif isinstance(answer, FailedBatch):
            if answer.error is not None:
                raise answer.error
            name = self._source.name(answer.sample)
            raise RuntimeError(f"a loader worker failed{f' at {name}' if name else ''}:\n{answer.trace}")
        elif worker in self._workers:
            self._replace(worker, answer)

    def _replace(self, worker: LoaderWorker, death: WorkerDeath) -> None:
        """Another one makes anew what this one has left."""
        name = self._source.name(int(worker.place[0]))
        what = f"a loader worker died ({death.cause}) {f'while it read {name}' if name else 'between two samples'}"
        if name:
            self._source.reader.quarantine.record(name, death.cause)
        self._deaths.append(self._next)
        if len(self._deaths) == MAX_DEATHS and self._next - self._deaths[0] < WITHIN:
            raise LoaderError(
                f"{what}, the {MAX_DEATHS}th within {WITHIN} batches. SIGKILL is how Linux ends processes when memory"
                " is short: set data.workers lower or train.micro_batch smaller, or give the job more memory"
            )
        ending = ": it is not read again" if name and name in self._source.reader.quarantine else ""
        log.error("%s%s; another one takes its place", what, ending)
        number = self._workers.index(worker)
        self._workers[number] = self._start(worker.place)
        for task in sorted(self._open):
            if task % len(self._workers) == number:
                self._workers[number].ask(task, self._open[task])
