"""The ordered map over processes."""

from __future__ import annotations

import itertools
import os

import pytest

from git_scale.data.builders.parallel import BATCH, map_in_order


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
