"""VQA accuracy by hand, and against the definition written out."""

from __future__ import annotations

import random
import zlib

import pytest

from git_scale.metrics.metric import Prediction, Predictions
from git_scale.metrics.vqa_accuracy import VQA_ACCURACY, answer_accuracy, normalize_answer


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Yes.", "yes"),
        ("the  Dog\n", "dog"),
        ("An apple and a pear", "apple and pear"),
        ("The", ""),
        ("none", "0"),
        ("ten men", "10 men"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("Couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("yall", "y'all"),
        ("oclock", "o'clock"),
        ("shell", "shell"),  # and not she'll
        ("dog's", "dog's"),
        ("1,000", "1000"),
        ("1,000-2,000", "10002000"),  # a comma between digits: every sign vanishes
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("t-shirt", "t shirt"),
        ("t-shirt, red", "t shirt red"),  # the comma has a blank beside it, the hyphen has not
        ("t-shirt - red", "tshirt red"),  # one blank beside a hyphen: all hyphens vanish
        ("red,white", "red white"),
        ("3.5", "3.5"),
        ("3. 5", "3 5"),
        ("p.m.", "pm"),
        ("10:30", "10:30"),  # the colon is no sign of the list
        ("what?!", "what"),
        ("(left)", "left"),
        ("", ""),
    ],
)
def test_normalisation(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("agree", "accuracy"),
    # k of 10 agree: (k * min(k - 1, 3) + (10 - k) * min(k, 3)) / 30
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)],
)
def test_ten_people(agree: int, accuracy: float) -> None:
    others = [f"{number}0" for number in range(10 - agree)]
    assert answer_accuracy("Two.", ["2"] * agree + others) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("generated", "answers", "accuracy"),
    [
        # people disagree: both sides are normalised, people's numbers and articles too
        ("2", ["two"] * 3 + ["2"] * 2 + ["three"] * 5, 1.0),
        ("dog", ["The dog."] * 3 + ["cat"] * 7, 0.9),
        ("the dog", ["dog"] * 2 + ["a dog"] + ["cat"] * 7, 0.9),
        # all of them wrote the same: neither side is touched
        ("two", ["two"] * 10, 1.0),
        ("2", ["two"] * 10, 0.0),
        ("two", ["2"] * 10, 0.0),
        ("the dog", ["the dog"] * 10, 1.0),
        ("dog", ["the dog"] * 10, 0.0),
        ("yes.", ["yes"] * 10, 0.0),
        (" yes\n", ["yes"] * 9 + ["yes "], 1.0),
    ],
)
def test_what_the_published_program_normalises(generated: str, answers: list[str], accuracy: float) -> None:
    assert answer_accuracy(generated, answers) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("answers", "accuracy"),
    [(["a"], 0), (["2"], 1), (["2", "3"], 0.5), (["2", "2", "3"], 2 / 3), (["2"] * 3, 1)],
)
def test_fewer_people(answers: list[str], accuracy: float) -> None:
    assert answer_accuracy("two", answers) == pytest.approx(accuracy)


def test_equals_leaving_out_each_person_in_turn() -> None:
    rng = random.Random(0)
    for _ in range(200):
        answers = [rng.choice(["yes", "no", "Yes."]) for _ in range(rng.randint(4, 12))] + ["no"]
        expected = 0.0
        for left_out in range(len(answers)):
            others = answers[:left_out] + answers[left_out + 1 :]
            expected += min(sum(other != "no" for other in others) / 3, 1) / len(answers)
        assert answer_accuracy("yes", answers) == pytest.approx(expected)


WORDS = """
    yes no Yes. the a An two 2 Ten ten. none red/white t-shirt 1,000 3.5 p.m. dont don't couldnt've what? (left)
    black-and-white isnt; x_y "ok" o'clock oclock 10:30 U.S. no! a.m what's whats somebody'd yall'll
"""


def test_of_a_thousand_pairs_it_is_what_the_published_program_gave() -> None:
    """Recorded from vqaEval.py of GT-Vision-Lab/VQA: sum, number of partly right ones, and a digest of all."""
    rng = random.Random(2205)
    words = WORDS.split()

    def text() -> str:
        line = " ".join(rng.choice(words) for _ in range(rng.choice((1, 1, 1, 2, 3))))
        return line + rng.choice(("", "", "", " ", "\n"))

    found = []
    for _ in range(1000):
        pool = [text() for _ in range(rng.randint(1, 4))]
        answers = [rng.choice(pool) for _ in range(10)]
        found.append(answer_accuracy(rng.choice([*pool, text()]), answers))
    digest = zlib.crc32(",".join(f"{value:.6f}" for value in found).encode())
    assert (round(sum(found), 6), sum(0 < value < 1 for value in found), digest) == (579.9, 272, 1350830512)


def test_mean_over_questions() -> None:
    asked = [("yes", ["yes"]), ("red", ["blue"]), ("4", ["four", "five"])]
    said = [Prediction(0, "", "", "?", text, right) for text, right in asked]
    assert VQA_ACCURACY.compute(Predictions(said)) == pytest.approx(0.5)
