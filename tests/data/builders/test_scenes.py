"""Where things lie: inside the margins, apart, and still so after any training crop."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from git_scale.data.builders.scenes import MARGIN, SIDE, Scene, draw_layout, possible_moves

pytest.importorskip("sklearn")

SMALLEST_CROP = round(SIDE * 0.8**0.5)  # of RandomResizedCrop keeping 80 % of the area


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(0)
    return [draw_layout(rng, "train") for _ in range(1500)]


def of_kind(scenes: list[Scene], kind: str) -> list[Scene]:
    return [scene for scene in scenes if scene.kind == kind]


def test_shares_of_the_kinds(scenes: list[Scene]) -> None:
    shares = Counter(scene.kind for scene in scenes)
    for kind, share in {"one": 0.60, "pair": 0.25, "number": 0.15}.items():
        assert shares[kind] / len(scenes) == pytest.approx(share, abs=0.04)  # 3 sigma: 0.038


def test_no_training_crop_cuts_a_digit(scenes: list[Scene]) -> None:
    assert SIDE - SMALLEST_CROP <= MARGIN
    boxes = np.array([digit.box for scene in scenes for digit in scene.digits])
    assert boxes[:, :2].min() >= MARGIN and boxes[:, 2:].max() <= SIDE - MARGIN


def test_the_place_is_right_even_after_the_worst_crop(scenes: list[Scene]) -> None:
    zoom, cut = SIDE / SMALLEST_CROP, SIDE - SMALLEST_CROP
    seen = set()
    for scene in of_kind(scenes, "one"):
        left, top, right, bottom = scene.digits[0].box
        middle = np.array([left + right, top + bottom]) / 2
        lowest, highest = (middle - cut) * zoom, middle * zoom
        words = {"top left": (-1, -1), "top right": (1, -1), "bottom left": (-1, 1), "bottom right": (1, 1)}
        for axis, sign in enumerate(words.get(scene.place, (0, 0))):
            if sign < 0:
                assert highest[axis] < 26
            elif sign > 0:
                assert lowest[axis] > SIDE - 26
            else:
                assert lowest[axis] > 26 and highest[axis] < SIDE - 26
        seen.add(scene.place)
    assert seen == {*words, "middle"}


def test_small_stays_smaller_than_large_after_any_crop(scenes: list[Scene]) -> None:
    heights = {"small": set(), "large": set(), "number": set()}
    for scene in scenes:
        for digit in scene.digits:
            heights[digit.size].add(digit.box[3] - digit.box[1])
    assert heights == {"small": {14, 15, 16}, "large": {26, 27, 28}, "number": {18, 19, 20}}
    assert max(heights["small"]) * SIDE / SMALLEST_CROP < min(heights["large"]) - 7


def test_pairs_stand_as_their_relation_says(scenes: list[Scene]) -> None:
    relations = Counter()
    for scene in of_kind(scenes, "pair"):
        first, second = scene.digits
        assert first.value != second.value and {first.size, second.size} == {"small", "large"}
        axis = {"left": 0, "above": 1}[scene.relation]
        assert first.box[axis + 2] + 2 <= second.box[axis]  # apart along the relation
        overlap = min(first.box[3 - axis], second.box[3 - axis]) - max(
            first.box[1 - axis], second.box[1 - axis]
        )
        assert overlap > 0  # and level across it
        relations[scene.relation] += 1
    assert min(relations.values()) > 100


def test_numbers_are_two_or_three_digits_in_a_row(scenes: list[Scene]) -> None:
    numbers = of_kind(scenes, "number")
    assert {len(scene.digits) for scene in numbers} == {2, 3}
    for scene in numbers:
        for before, after in zip(scene.digits, scene.digits[1:], strict=False):
            assert after.box[0] - before.box[2] == 2
            assert abs(after.box[1] - before.box[1]) <= 4


def test_every_single_digit_can_move_and_never_into_its_corner(scenes: list[Scene]) -> None:
    for scene in of_kind(scenes, "one"):
        moves = possible_moves(scene.digits[0])
        expected = {
            "top left": {"right", "down"},
            "top right": {"left", "down"},
            "bottom left": {"right", "up"},
            "bottom right": {"left", "up"},
            "middle": {"right", "left", "down", "up"},
        }[scene.place]
        assert set(moves) == expected
        assert min(moves.values()) >= 8
