"""What a scene of handwritten digits holds, and where: drawn at random, legible and unambiguous.

Geometry: RandomResizedCrop that keeps 80 % of the area removes at most 1 - sqrt(0.8) = 10.6 % of the side,
here 7 of 64 pixels. No digit comes nearer than MARGIN = 7 pixels to the edge, so no training crop cuts one.
After any such crop the centre of a corner digit lies at most at 23 / 0.89 = 25.8 (19 if it is small), that of
a middle digit between 26.4 and 37.1. A small digit grows to at most 16 / 0.89 = 18 pixels, a large
one has at least 26.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from git_scale.data.builders.handwriting import Ink, scans_of, write_digit

SIDE = 64  # pixels
MARGIN = 7
ROOM = SIDE - 2 * MARGIN
KINDS = {"one": 0.60, "pair": 0.25, "number": 0.15}  # share of the scenes
HEIGHTS = {"small": (14, 16), "large": (26, 28), "number": (18, 20)}  # pixels, both ends included
WIDEST = 0.75  # width by height: three digits of a number are at most 15 wide and fit between the margins
GAP = 2  # least number of pixels between two digits
PLACES = {"top left": (0, 0), "top right": (1, 0), "bottom left": (0, 1), "bottom right": (1, 1)}
MOVES = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}
SHORTEST_MOVE = 8  # pixels

Write = Callable[[int, str], "Stroke"]


@dataclass(frozen=True)
class Stroke:
    """A digit that is written but not yet placed."""

    value: int
    scan: int
    size: str
    ink: Ink

    @property
    def extent(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.ink.shape[1], self.ink.shape[0]


@dataclass(frozen=True)
class Digit(Stroke):
    """A digit with the upper left corner of its ink in the image."""

    left: int
    top: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in pixels; right and bottom lie just outside."""
        width, height = self.extent
        return self.left, self.top, self.left + width, self.top + height


@dataclass(frozen=True)
class Scene:
    """One digit at a place, a pair in relation (left: the first is left of the second), or a number."""

    kind: str
    """A key of KINDS."""
    digits: tuple[Digit, ...]
    place: str = ""
    """Of one digit: a key of PLACES, or middle."""
    relation: str = ""
    """Of a pair: left or above."""


def draw_layout(rng: np.random.Generator, split: str, kind: str | None = None) -> Scene:
    """A random scene, of that kind (a key of KINDS) or a random one, written with the scans of `split`."""
    scans = scans_of(split)

    def write(value: int, size: str) -> Stroke:
        scan = int(rng.choice(scans[value]))
        low, high = HEIGHTS[size]
        height = int(rng.integers(low, high + 1))
        return Stroke(value, scan, size, write_digit(rng, scan, height, int(WIDEST * height)))

    kind = kind or str(rng.choice(list(KINDS), p=list(KINDS.values())))
    return {"one": _one, "pair": _pair, "number": _number}[kind](rng, write)


def possible_moves(digit: Digit) -> dict[str, int]:
    """The directions in which a digit can move visibly, each with the pixels up to the margin."""
    left, top, right, bottom = digit.box
    far = SIDE - MARGIN
    room = {"right": far - right, "left": left - MARGIN, "down": far - bottom, "up": top - MARGIN}
    return {move: pixels for move, pixels in room.items() if pixels >= SHORTEST_MOVE}


def _one(rng: np.random.Generator, write: Write) -> Scene:
    stroke = write(int(rng.integers(10)), _size(rng))
    place = str(rng.choice([*PLACES, "middle"]))
    if place == "middle":
        corner = [_centred(rng, length, 1) for length in stroke.extent]
    else:
        inward = rng.integers(0, 3, 2)
        corner = [
            int(SIDE - MARGIN - length - shift if far else MARGIN + shift)
            for far, length, shift in zip(PLACES[place], stroke.extent, inward, strict=True)
        ]
    return Scene("one", (_place(stroke, *corner),), place=place)


def _pair(rng: np.random.Generator, write: Write) -> Scene:
    """Two different digits of different size: no question is ambiguous, and no pair looks like a number.

    (And two large ones, one above the other, would not fit between the margins.)
    """
    values = rng.choice(10, 2, replace=False)
    size = _size(rng)
    strokes = [write(int(values[0]), size), write(int(values[1]), "large" if size == "small" else "small")]
    relation = str(rng.choice(["left", "above"]))
    axis = ("left", "above").index(relation)
    lengths = [stroke.extent[axis] for stroke in strokes]
    first, gap = np.sort(rng.integers(0, ROOM - sum(lengths) - GAP + 1, 2))
    along = (int(MARGIN + first), int(MARGIN + lengths[0] + GAP + gap))
    shift = int(rng.integers(-4, 5))
    across = [_centred(rng, stroke.extent[1 - axis], 2) + shift for stroke in strokes]
    corners = list(zip(along, across, strict=True) if relation == "left" else zip(across, along, strict=True))
    digits = tuple(_place(stroke, *corner) for stroke, corner in zip(strokes, corners, strict=True))
    return Scene("pair", digits, relation=relation)


def _number(rng: np.random.Generator, write: Write) -> Scene:
    strokes = [write(int(value), "number") for value in rng.integers(0, 10, rng.integers(2, 4))]
    widths = [stroke.extent[0] for stroke in strokes]
    left = MARGIN + int(rng.integers(0, ROOM - sum(widths) - GAP * (len(widths) - 1) + 1))
    shift = int(rng.integers(-8, 9))
    digits = []
    for stroke, width in zip(strokes, widths, strict=True):
        digits.append(_place(stroke, left, _centred(rng, stroke.extent[1], 1) + shift))
        left += width + GAP
    return Scene("number", tuple(digits))


def _size(rng: np.random.Generator) -> str:
    return str(rng.choice(["small", "large"]))


def _centred(rng: np.random.Generator, length: int, jitter: int) -> int:
    return (SIDE - length) // 2 + int(rng.integers(-jitter, jitter + 1))


def _place(stroke: Stroke, left: int, top: int) -> Digit:
    return Digit(stroke.value, stroke.scan, stroke.size, stroke.ink, left, top)
