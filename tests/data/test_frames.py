"""Equally spaced frames, as training, evaluations and users' clips all take them."""

from __future__ import annotations

import pytest
from PIL import Image

from git_scale.data.frames import check_one_size, pick_frames, spaced
from git_scale.errors import DataError


def test_points_are_in_the_middle_of_equal_parts_unless_told_otherwise() -> None:
    assert spaced(0, 6, 3) == [1, 3, 5]
    assert spaced(10, 20, 1) == [15]
    assert spaced(0, 6, 3, offset=0) == [0, 2, 4]


@pytest.mark.parametrize(
    ("count", "offset", "picked"),
    [
        (1, 0.5, "d"),
        (2, 0.5, "bf"),
        (3, 0.0, "ace"),
        (3, 0.999, "ceg"),
        (7, 0.3, "abcdefg"),
        (14, 0.5, "aabbccddeeffgg"),
    ],
)
def test_frames_are_those_at_the_points(count: int, offset: float, picked: str) -> None:
    """Of seven frames, by hand: part p begins at 7 p / count."""
    assert "".join(pick_frames("abcdefg", count, offset)) == picked


def test_frames_of_different_sizes_are_refused() -> None:
    images = [Image.new("RGB", size) for size in ((4, 3), (4, 3), (3, 4))]
    check_one_size(images[:2])
    with pytest.raises(DataError, match="the frames of the clip differ in size"):
        check_one_size(images)
