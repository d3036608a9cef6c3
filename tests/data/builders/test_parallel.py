"""The ordered map over processes."""

from __future__ import annotations

import itertools
import os
import select
import signal
import threading
import time
from multiprocessing import Pipe, active_children, get_context
from multiprocessing.connection import Connection

import pytest

from git_scale.data.builders.parallel import BATCH, map_in_order
from git_scale.errors import DataError
from git_scale.stop import Stopped, StopRequest


def where(number: int) -> tuple[int, int]:
    return number, os.getpid()


def fail_at_three(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    return number


def test_one_worker_stays_in_this_process_and_is_lazy() -> None:
    results = map_in_order(where, itertools.count(), workers=1)
    assert list(itertools.islice(results, 3)) == [(number, os.getpid()) for number in range(3)]


def test_processes_keep_the_order_and_take_no_more_than_they_need() -> None:
    taken = []
    numbers = (taken.append(number) or number for number in itertools.count())
    results = map_in_order(where, numbers, workers=2)
    first = list(itertools.islice(results, 3 * BATCH))
    results.close()
    assert [number for number, _ in first] == list(range(3 * BATCH))
    assert os.getpid() not in {process for _, process in first}
    assert len(taken) <= 16 * BATCH  # an endless source is not read to its end


def test_a_failure_in_a_process_comes_back() -> None:
    with pytest.raises(ValueError, match="three"):
        list(map_in_order(fail_at_three, range(10), workers=2))


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def hang(number: int) -> int:
    time.sleep(1000)
    return number


def workers_of_a_parent_that_dies(pipe: Connection) -> None:
    results = map_in_order(where, itertools.count(), workers=2)
    next(results)
    pipe.send([child.pid for child in active_children()])
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_item_that_kills_its_process_is_told_and_no_other_is_lost() -> None:
    """One of them ended the whole build."""
    numbers = [0, 1, 2, *range(4, 3 * BATCH), 3, 4]
    found = list(map_in_order(die_at_three, numbers, workers=2, died_of=lambda number: -number))
    assert found == [-number if number == 3 else number for number in numbers]


def test_no_process_is_left_when_one_has_died() -> None:
    """They do not hear that they are to end, and the tool waited for them at its end, for ever."""
    before = set(active_children())
    list(map_in_order(die_at_three, range(2 * BATCH), workers=2, died_of=abs))
    assert set(active_children()) == before


def test_processes_that_die_of_everything_are_an_error() -> None:
    with pytest.raises(DataError, match=r"a worker process died of 3, .*; take fewer --workers"):
        list(map_in_order(die_at_three, range(10), workers=2))
    with pytest.raises(DataError, match="a worker process died of 3, "):
        list(map_in_order(die_at_three, [3] * 5, workers=2, died_of=abs))


def test_a_process_that_is_killed_from_outside_loses_nothing() -> None:
    results = map_in_order(where, range(10 * BATCH), workers=2)
    first = next(results)
    os.kill(first[1], signal.SIGKILL)
    assert [first[0], *(number for number, _ in results)] == list(range(10 * BATCH))


def test_a_stop_is_heard_while_all_processes_hang() -> None:
    with StopRequest(), pytest.raises(Stopped):
        threading.Timer(1, signal.raise_signal, [signal.SIGTERM]).start()
        list(map_in_order(hang, range(100), workers=2))


def test_processes_end_with_their_parent() -> None:
    """They waited for its next item for ever."""
    ours, theirs = Pipe(duplex=False)
    parent = get_context("spawn").Process(target=workers_of_a_parent_that_dies, args=(theirs,))
    parent.start()
    theirs.close()
    workers = [os.pidfd_open(pid) for pid in ours.recv()]  # readable when the process has ended
    parent.join()
    assert len(workers) == 2
    for worker in workers:
        assert select.select([worker], [], [], 60)[0], "it lives on"
        os.close(worker)
