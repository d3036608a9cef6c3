from __future__ import annotations

import hashlib

import numpy as np
import pytest

from git_scale.data.order import SampleOrder, permutation
from git_scale.errors import DataError

COUNTS = np.array([5, 7, 1, 4, 9, 3, 8])
N = int(COUNTS.sum())


def walk(order: SampleOrder, first: int, number: int) -> list[tuple[int, int]]:
    return [order.sample(position) for position in range(first, first + number)]


@pytest.mark.parametrize("window_shards", [1, 2, 3, 7, 16])
def test_every_epoch_is_a_permutation(window_shards: int) -> None:
    order = SampleOrder(COUNTS, seed=3, window_shards=window_shards)
    for epoch in range(3):
        samples = walk(order, epoch * N, N)
        assert {e for e, _ in samples} == {epoch}
        assert sorted(index for _, index in samples) == list(range(N))


def test_seeds_and_epochs_differ_and_the_same_agree() -> None:
    first = walk(SampleOrder(COUNTS, 0), 0, 2 * N)
    assert walk(SampleOrder(COUNTS, 0), 0, 2 * N) == first
    assert [index for _, index in first[:N]] != [index for _, index in first[N:]]
    assert walk(SampleOrder(COUNTS, 1), 0, N) != first[:N]


def test_starting_far_away_equals_walking_there() -> None:
    order = SampleOrder(COUNTS, 5, window_shards=2)
    start = 10**6
    walked = walk(order, start - 3 * N, 6 * N)[3 * N :]
    assert walk(SampleOrder(COUNTS, 5, window_shards=2), start, 3 * N) == walked
    jumps = np.random.default_rng(0).integers(3 * N, size=100).tolist()
    assert [order.sample(start + jump) for jump in jumps] == [walked[jump] for jump in jumps]


def test_a_window_holds_whole_shards() -> None:
    """The reason of windows: at any time, at most window_shards shards are being read."""
    order = SampleOrder(COUNTS, 0, window_shards=2)
    shard_of = np.repeat(np.arange(len(COUNTS)), COUNTS)
    left, position = set(range(len(COUNTS))), 0
    while left:
        size, shards = 0, set[int]()
        while not shards or size < COUNTS[sorted(shards)].sum():
            shards.add(int(shard_of[order.sample(position + size)[1]]))
            size += 1
        assert len(shards) <= 2
        left -= shards
        position += size
    assert position == N


def test_samples_of_a_window_are_mixed() -> None:
    order = SampleOrder(np.array([100, 100]), 0)
    first_half = [index for _, index in walk(order, 0, 100)]
    assert 30 < sum(index < 100 for index in first_half) < 70
    assert first_half != sorted(first_half)


def test_the_order_is_the_same_for_ever() -> None:
    """A run resumed by a later version must find the order it was begun with."""
    indices = [index for _, index in walk(SampleOrder(COUNTS, 42, window_shards=3), 0, 3 * N)]
    assert hashlib.sha256(bytes(indices)).hexdigest()[:16] == "87fb83037b252600"
    assert permutation(0, 0, 0, 8).tolist() == [6, 3, 1, 4, 5, 2, 7, 0]


def test_large_sets_cost_little() -> None:
    order = SampleOrder(np.full(10_000, 10_000), 0)  # 1e8 samples
    epoch, index = order.sample(3 * 10**8 + 12_345)
    assert epoch == 3 and 0 <= index < 10**8
    assert order._samples.nbytes == 16 * 10_000 * 8


def test_no_samples() -> None:
    with pytest.raises(DataError):
        SampleOrder(np.array([], np.int64), 0)
