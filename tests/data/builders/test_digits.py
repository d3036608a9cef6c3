"""The scenes' images and sentences: both recomputed here from the metadata, by other means."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from git_scale.data.builders import handwriting
from git_scale.data.builders.digits import digit_scenes, draw_scene
from git_scale.data.builders.writer import SampleToWrite
from git_scale.errors import DataError

pytest.importorskip("sklearn")

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
NAMES = {str(number): word for number, word in enumerate(WORDS)}
CENTRES = {  # of the quarters, moved inwards by the half of a digit; x and y
    "top left": (20, 20),
    "top right": (44, 20),
    "bottom left": (20, 44),
    "bottom right": (44, 44),
    "middle": (32, 32),
}


@pytest.fixture(scope="module")
def scenes() -> list[SampleToWrite]:
    return list(digit_scenes("heldout", 600, seed=0))


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data), formats=["JPEG"]).convert("L"), np.float32)


def darkness(data: bytes) -> np.ndarray:
    """Where ink lies: far darker than the paper (the sheet's lines are faint)."""
    picture = pixels(data)
    return np.maximum(0, np.median(picture) - 50 - picture)


def centre(ink: np.ndarray) -> tuple[float, float]:
    """x and y of the centre of mass."""
    rows, columns = np.indices(ink.shape)
    return float((ink * columns).sum() / ink.sum()), float((ink * rows).sum() / ink.sum())


def test_a_scene_is_a_function_of_split_seed_and_number(scenes: list[SampleToWrite]) -> None:
    assert draw_scene("heldout", 0, 17) == scenes[17]
    assert draw_scene("heldout", 1, 17).image != scenes[17].image
    assert draw_scene("train", 0, 17).image != scenes[17].image
    assert len({sample.image for sample in scenes}) == len(scenes)


def test_processes_draw_the_same_scenes(scenes: list[SampleToWrite]) -> None:
    assert list(digit_scenes("heldout", 70, seed=0, workers=2)) == scenes[:70]


def test_unknown_split_is_refused_at_once() -> None:
    with pytest.raises(DataError, match="split 'val': unknown"):
        digit_scenes("val", 1, seed=0)


def test_captions_follow_from_the_metadata(scenes: list[SampleToWrite]) -> None:
    kinds = set()
    for sample in scenes:
        text = sample.text
        words = [NAMES[character] for character in text["scene_text"]]
        sizes = [digit["size"] for digit in text["digits"]]
        expected = {
            "one": f"a {sizes[0]} {words[0]} in the {text['place']}",
            "pair": f"a {sizes[0]} {words[0]} {{}} a {sizes[-1]} {words[-1]}".format(
                {"left": "to the left of", "above": "above"}.get(text["relation"])
            ),
            "number": "the number " + " ".join(words),
        }[text["kind"]]
        assert text["captions"] == [expected]
        assert [digit["value"] for digit in text["digits"]] == [int(c) for c in text["scene_text"]]
        kinds.add(text["kind"])
    assert kinds == {"one", "pair", "number"}


def test_digits_are_written_from_scans_of_the_split_that_show_them(scenes: list[SampleToWrite]) -> None:
    own, other = handwriting.scans_of("heldout"), handwriting.scans_of("train")
    for sample in scenes:
        for digit in sample.text["digits"]:
            assert digit["scan"] in own[digit["value"]]
            assert not any(digit["scan"] in scans for scans in other)


def test_there_are_many_captions(scenes: list[SampleToWrite]) -> None:
    assert len({sample.text["captions"][0] for sample in scenes}) >= 250


def test_all_ink_lies_in_the_boxes_and_every_box_has_some(scenes: list[SampleToWrite]) -> None:
    for sample in scenes[:200]:
        ink = darkness(sample.image)
        assert ink.shape == (64, 64)
        covered = np.zeros_like(ink, bool)
        for digit in sample.text["digits"]:
            left, top, right, bottom = digit["box"]
            assert (ink[top:bottom, left:right] > 0).mean() > 0.08
            covered[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = True
        assert ink[~covered].sum() <= 0.02 * ink.sum()


def test_the_ink_lies_where_the_caption_says(scenes: list[SampleToWrite]) -> None:
    seen = set()
    for sample in scenes:
        text = sample.text["captions"][0]
        if sample.text["kind"] != "one":
            continue
        x, y = centre(darkness(sample.image))
        place = min(CENTRES, key=lambda place: math.dist(CENTRES[place], (x, y)))
        assert text.endswith(f" in the {place}")
        seen.add(place)
    assert len(seen) == 5


def test_the_first_of_a_pair_lies_left_or_above_and_large_has_more_ink(scenes: list[SampleToWrite]) -> None:
    pairs = [sample for sample in scenes if sample.text["kind"] == "pair"]
    assert len(pairs) > 100
    for sample in pairs:
        ink, inks, centres = darkness(sample.image), [], []
        for digit in sample.text["digits"]:
            left, top, right, bottom = digit["box"]
            only = np.zeros_like(ink)
            only[top:bottom, left:right] = ink[top:bottom, left:right]
            inks.append(only.sum())
            centres.append(centre(only))
        axis = 0 if " to the left of " in sample.text["captions"][0] else 1
        assert centres[0][axis] + 5 < centres[1][axis]
        assert (inks[0] > inks[1]) == sample.text["captions"][0].startswith("a large")


def test_questions_have_the_answers_that_the_caption_gives(scenes: list[SampleToWrite]) -> None:
    by_hand = {
        "one": ["what digit is it?", "how large is the {0}?", "where is the {0}?"],
        "left": ["what digit is on the left?", "what digit is on the right?"],
        "above": ["what digit is at the top?", "what digit is at the bottom?"],
        "number": ["what number is it?", "how many digits are there?", "what is the first digit?"],
    }
    for sample in scenes:
        text = sample.text
        words = [NAMES[character] for character in text["scene_text"]]
        sizes = [digit["size"] for digit in text["digits"]]
        answers = {item["question"]: item["answers"] for item in text["questions"]}
        for question in by_hand[text["relation"] or text["kind"]]:
            assert question.format(*words) in answers
        expected = {
            "what digit is it?": words[0],
            f"how large is the {words[0]}?": sizes[0],
            f"how large is the {words[-1]}?": sizes[-1],
            f"where is the {words[0]}?": f"in the {text['place']}",
            "what digit is on the left?": words[0],
            "what digit is on the right?": words[-1],
            "what digit is at the top?": words[0],
            "what digit is at the bottom?": words[-1],
            "what number is it?": " ".join(words),
            "how many digits are there?": {2: "two", 3: "three"}.get(len(words)),
            "what is the first digit?": words[0],
            "what is the last digit?": words[-1],
        }
        assert answers == {question: [expected[question]] for question in answers}
        assert len(answers) == len(text["questions"])  # none is asked twice


def test_clips_start_with_the_scene_and_move_as_they_say(scenes: list[SampleToWrite]) -> None:
    moves = set()
    for number, sample in enumerate(scenes):
        has_clip = number % 8 == 0 and sample.text["kind"] == "one"
        assert bool(sample.frames) == has_clip == ("clip_captions" in sample.text)
        if not has_clip:
            continue
        assert len(sample.frames) == 6 and sample.frames[0] == sample.image
        centres = np.array([centre(darkness(frame)) for frame in sample.frames])
        dx, dy = centres[-1] - centres[0]
        move = {"r": "right", "l": "left", "d": "down", "u": "up"}[
            ("r" if dx > 0 else "l") if abs(dx) > abs(dy) else ("d" if dy > 0 else "u")
        ]
        start = sample.text["captions"][0].split(" in the ")[0]
        way = move if move in ("up", "down") else f"to the {move}"
        assert sample.text["clip_captions"] == [f"{start} moves {way}"]
        axis = 0 if move in ("right", "left") else 1
        steps = np.diff(centres[:, axis])
        assert (np.sign(steps) == np.sign(steps[0])).all() and np.abs(
            centres[:, 1 - axis] - centres[0, 1 - axis]
        ).max() < 1
        moves.add(move)
    assert moves == {"right", "left", "down", "up"}


def test_metadata_survives_json(scenes: list[SampleToWrite]) -> None:
    text = json.loads(json.dumps(scenes[5].text))
    assert text["image_id"] == 5
    assert set(text["digits"][0]) == {"value", "size", "scan", "box"}
