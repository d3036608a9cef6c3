"""Batches of one shape and one number of queries, in any order, give results in theirs."""

from __future__ import annotations

import numpy as np
import pytest

from git_scale.data.clips import Clip
from git_scale.errors import UserError
from git_scale.inference.grouping import WINDOW, in_shape_of, per_image, run_batched


def run(
    widths: list[int], queries: list[list[int]], most_images: int, most_queries: int
) -> list[tuple[int, int]]:
    """Checks the results; returns (clips, queries per clip) of each call of `work`."""
    calls = []

    def prepare(number: int) -> Clip:
        return Clip(np.full((1, 3, 1, widths[number]), number, np.uint8))

    def work(clips: list[Clip], asked: list[list[int]]) -> list[list[tuple[int, int]]]:
        assert len({clip.pixels.shape for clip in clips}) == 1 and len({len(row) for row in asked}) == 1
        assert len(clips) <= most_images and len(clips) * len(asked[0]) <= most_queries
        calls.append((len(clips), len(asked[0])))
        numbers = [int(clip.pixels[0, 0, 0, 0]) for clip in clips]
        return [[(number, query) for query in row] for number, row in zip(numbers, asked, strict=True)]

    found = run_batched(prepare, queries, most_images, most_queries, work)
    assert found == [[(number, query) for query in row] for number, row in enumerate(queries)]
    return calls


def test_equal_ones_share_a_call() -> None:
    assert run([4] * 5, [[7]] * 5, 2, 64) == [(2, 1), (2, 1), (1, 1)]
    assert sorted(run([4, 5, 4, 5], [[1, 2], [3, 4], [5, 6], [7]], 8, 64)) == [(1, 1), (1, 2), (2, 2)]
    assert run([], [], 8, 64) == []


def test_many_queries_are_cut_whatever_the_order_of_the_parts() -> None:
    calls = run([4, 4], [list(range(2)), list(range(7))], 8, 5)
    assert sorted(calls) == [(1, 5), (2, 2)], "the rest of the second goes with the first"
    assert run([4] * 4, [[1, 2, 3]] * 4, 8, 7) == [(2, 3), (2, 3)]


@pytest.mark.parametrize("seed", range(5))
def test_random_shapes_and_numbers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = 3 * WINDOW + 2
    widths = [int(width) for width in rng.integers(1, 4, count)]
    run(widths, [list(range(int(number))) for number in rng.integers(0, 9, count)], 3, 6)


def test_clips_are_prepared_once_and_few_at_a_time() -> None:
    prepared: list[int] = []

    def work(clips: list[Clip], asked: list[list[int]]) -> list[list[int]]:
        assert len(prepared) <= WINDOW * (1 + max(row[0] for row in asked) // WINDOW)
        return asked

    def prepare(number: int) -> Clip:
        prepared.append(number)
        return Clip(np.zeros((1, 3, 1, 1), np.uint8))

    run_batched(prepare, [[number] * 5 for number in range(40)], 1, 2, work)
    assert prepared == list(range(40))


def test_texts_for_each_image() -> None:
    assert per_image("a", 2, "texts") == [["a"], ["a"]]
    assert per_image(["a", "b"], 2, "texts") == [["a"], ["b"]]
    assert per_image([["a", "b"], ("c",)], 2, "texts") == [["a", "b"], ["c"]]
    for wrong in (["a"], [["a"], []], [["a"], "b"]):
        with pytest.raises(UserError, match="texts"):
            per_image(wrong, 2, "texts")


def test_results_have_the_shape_of_the_texts() -> None:
    assert in_shape_of("a", [[1], [2]]) == [1, 2]
    assert in_shape_of(["a", "b"], [[1], [2]]) == [1, 2]
    assert in_shape_of([["a"], ["b"]], [[1], [2]]) == [[1], [2]]
    assert in_shape_of([], []) == []
