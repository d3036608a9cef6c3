"""The demo's data: images of handwritten digits with a caption whose every word can be checked.

    one digit   a large seven in the top left
    pair        a small three to the left of a large seven
    number      the number four seven two

Every scene has exactly one right caption, so that exact match is well defined. A scene is a pure function of
(split, seed, its number): any process can draw any part of a data set.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from git_scale.data.builders import handwriting
from git_scale.data.builders.parallel import map_in_order
from git_scale.data.builders.scenes import MOVES, SIDE, Digit, Scene, draw_layout, possible_moves
from git_scale.data.builders.writer import SampleToWrite

# A clip costs as much as six scenes: on every eighth (if it is of one digit) it adds half to the bytes.
CLIP_EVERY = 8
CLIP_FRAMES = 6
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def digit_scenes(split: str, count: int, seed: int, workers: int = 1) -> Iterator[SampleToWrite]:
    """Scenes 0 .. count - 1 of a split (train or heldout), in order, drawn by `workers` processes.

    Raises DataError for an unknown split or when scikit-learn is missing.
    """
    handwriting.scans_of(split)  # its errors show here, not in a worker
    return map_in_order(partial(draw_scene, split, seed), range(count), workers)


def draw_scene(
    split: str, seed: int, number: int, kind: str | None = None, clip_every: int = CLIP_EVERY
) -> SampleToWrite:
    """Scene `number`: image, caption, questions, what it is made of, and on some a clip.

    `kind`: one, pair or number; by default drawn as well.
    """
    rng = np.random.default_rng((seed, handwriting.SPLITS.index(split), number))
    scene = draw_layout(rng, split, kind)
    paper, noise = handwriting.draw_paper(rng, SIDE), handwriting.draw_noise(rng, SIDE)
    pen = handwriting.pick_pen(rng)

    def paint(dx: int = 0, dy: int = 0) -> bytes:
        image = paper.copy()
        for digit in scene.digits:
            handwriting.lay_ink(image, digit.ink, digit.left + dx, digit.top + dy, pen)
        return handwriting.to_jpeg(image + noise)

    text = _describe(scene, number)
    if number % clip_every or scene.kind != "one":
        return SampleToWrite(paint(), "jpg", text)
    moves = possible_moves(scene.digits[0])
    move = str(rng.choice(list(moves)))
    frames = tuple(paint(dx, dy) for dx, dy in _path(move, moves[move]))
    return SampleToWrite(
        paint(), "jpg", text | {"clip_captions": [clip_caption(scene.digits[0], move)]}, frames
    )


def caption(scene: Scene) -> str:
    """The one right caption."""
    first, last = scene.digits[0], scene.digits[-1]
    match scene.kind:
        case "one":
            return f"a {_name(first)} in the {scene.place}"
        case "pair":
            relation = "to the left of" if scene.relation == "left" else "above"
            return f"a {_name(first)} {relation} a {_name(last)}"
        case _:
            return f"the number {_spell(scene)}"


def questions(scene: Scene) -> list[tuple[str, str]]:
    """Questions, each with its one right answer."""
    first, last = (WORDS[digit.value] for digit in (scene.digits[0], scene.digits[-1]))
    match scene.kind:
        case "one":
            return [
                ("what digit is it?", first),
                (f"how large is the {first}?", scene.digits[0].size),
                (f"where is the {first}?", f"in the {scene.place}"),
            ]
        case "pair":
            sides = (
                ("on the left", "on the right")
                if scene.relation == "left"
                else ("at the top", "at the bottom")
            )
            return [
                (f"what digit is {sides[0]}?", first),
                (f"what digit is {sides[1]}?", last),
                (f"how large is the {first}?", scene.digits[0].size),
                (f"how large is the {last}?", scene.digits[1].size),
            ]
        case _:
            return [
                ("what number is it?", _spell(scene)),
                ("how many digits are there?", WORDS[len(scene.digits)]),
                ("what is the first digit?", first),
                ("what is the last digit?", last),
            ]


def clip_caption(digit: Digit, move: str) -> str:
    """The one right caption of a clip in which `digit` moves."""
    return f"a {_name(digit)} moves {move if move in ('up', 'down') else f'to the {move}'}"


def _describe(scene: Scene, number: int) -> dict[str, Any]:
    """The sample's json. `digits` tells the scan and the box (left, top, right, bottom) of each digit."""
    return {
        "captions": [caption(scene)],
        "questions": [{"question": ask, "answers": [answer]} for ask, answer in questions(scene)],
        "scene_text": "".join(str(digit.value) for digit in scene.digits),
        "image_id": number,
        "kind": scene.kind,
        "place": scene.place,
        "relation": scene.relation,
        "digits": [
            {"value": digit.value, "size": digit.size, "scan": digit.scan, "box": digit.box}
            for digit in scene.digits
        ],
    }


def _path(move: str, pixels: int) -> Iterator[tuple[int, int]]:
    """The digit's offset in each frame; the first frame is the scene itself."""
    for frame in range(CLIP_FRAMES):
        way = round(pixels * frame / (CLIP_FRAMES - 1))
        yield MOVES[move][0] * way, MOVES[move][1] * way


def _name(digit: Digit) -> str:
    return f"{digit.size} {WORDS[digit.value]}"


def _spell(scene: Scene) -> str:
    return " ".join(WORDS[digit.value] for digit in scene.digits)
