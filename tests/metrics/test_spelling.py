"""ANLS, word accuracy and edit similarity, against hand-computed values and another implementation."""

from __future__ import annotations

import random
import re

import pytest

from git_scale.errors import DataError
from git_scale.metrics import spelling


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def anls(generated: list[str], references: list[list[str]]) -> float:
    return mean(spelling.anls(generated, references))


def word_accuracy(generated: list[str], references: list[list[str]]) -> float:
    return mean(spelling.equal_words(generated, references))


def word_accuracy_cased(generated: list[str], references: list[list[str]]) -> float:
    return mean(spelling.equal_cased_words(generated, references))


def edit_similarity(generated: list[str], references: list[list[str]]) -> float:
    return mean(spelling.edit_similarity(generated, references))


def distance(a: str, b: str) -> int:
    """Levenshtein's, by the textbook."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        above, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (left != right))
    return row[-1]


def test_anls_by_hand() -> None:
    # 1 of 11 letters is missing; half of the letters are wrong, which the published program keeps; more are wrong
    assert anls(["Main Sreet"], [["main street"]]) == pytest.approx(1 - 1 / 11)
    assert anls(["abxy"], [["abcd"]]) == 0.5
    assert anls(["axyz"], [["abcd"]]) == 0
    assert anls(["  STOP\n sign"], [["no", "stop sign"]]) == 1, (
        "the best reference, without case and runs of blanks"
    )
    assert anls(["", "a"], [[""], ["a"]]) == 1
    assert anls(["abcd", "zzzz"], [["abcd"], ["abcd"]]) == 0.5


def test_anls_is_that_of_the_textbook() -> None:
    draw = random.Random(0)
    texts = ["".join(draw.choices("ab D", k=draw.randint(1, 4))) for _ in range(2000)]
    generated, references = texts[:1000], [[text] for text in texts[1000:]]

    def plain(text: str) -> str:
        return " ".join(text.lower().split())

    expected = []
    for text, (right,) in zip(generated, references, strict=True):
        a, b = plain(text), plain(right)
        similarity = 1 - distance(a, b) / max(len(a), len(b), 1)
        expected.append(similarity if similarity >= 0.5 else 0)
    assert anls(generated, references) == pytest.approx(sum(expected) / 1000, abs=1e-12)
    assert 0.1 < sum(expected) / 1000 < 0.9


def test_words_are_compared_in_lower_case_letters_and_digits() -> None:
    generated, references = (
        ["Open-24!", "COFFEE", "it's", "exit"],
        [["OPEN24"], ["coffe"], ["ITS"], ["EXIT", "exit"]],
    )
    assert word_accuracy(generated, references) == 0.75
    assert word_accuracy_cased(generated, references) == 0.25
    # coffee and coffe: one of six letters
    assert edit_similarity(generated, references) == pytest.approx((1 + 5 / 6 + 1 + 1) / 4)


def test_word_accuracy_is_that_of_an_independent_count() -> None:
    draw = random.Random(1)
    words = ["".join(draw.choices("aB1-", k=draw.randint(1, 3))) for _ in range(2000)]
    pairs = list(zip(words[:1000], words[1000:], strict=True))

    def key(text: str) -> str:
        return re.sub(r"[\W_]", "", text).lower() or text.lower()

    hits = sum(key(a) == key(b) for a, b in pairs)
    assert word_accuracy([a for a, _ in pairs], [[b] for _, b in pairs]) == hits / 1000
    assert 0 < hits < 1000


def test_words_of_other_scripts_are_not_all_alike() -> None:
    assert word_accuracy(["\u732b", "?"], [["\u72ac"], ["!"]]) == 0
    assert word_accuracy(["\u732b"], [["\u732b"]]) == 1


@pytest.mark.parametrize("metric", [anls, word_accuracy, word_accuracy_cased, edit_similarity])
def test_each_text_needs_a_reference(metric: object) -> None:
    with pytest.raises(DataError, match="has no reference"):
        metric(["a"], [[]])  # type: ignore[operator]
