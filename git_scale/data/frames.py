"""Which frames of a clip a model sees: equally spaced ones, all of one size.

pick_frames(range(6), 3)       [1, 3, 5]: the middle of each of three equal parts
pick_frames(range(6), 3, 0)    [0, 2, 4]: their beginnings
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from PIL import Image

from git_scale.errors import DataError

Frame = TypeVar("Frame")


def pick_frames(frames: Sequence[Frame], count: int, offset: float = 0.5) -> list[Frame]:
    """`count` of the frames, some of them twice where there are fewer. `offset` in [0, 1) places each in its part."""
    return [frames[int(point)] for point in spaced(0, len(frames), count, offset)]


def spaced(start: float, end: float, count: int, offset: float = 0.5) -> list[float]:
    """A point in each of `count` equal parts of [start, end): by default their middles."""
    return [start + (part + offset) * (end - start) / count for part in range(count)]


def check_one_size(images: Sequence[Image.Image]) -> None:
    """Raises DataError for frames that cannot be stacked."""
    if len({image.size for image in images}) > 1:
        raise DataError("the frames of the clip differ in size")
