"""Words of captions in scripts with and without blanks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from git_scale.metrics.ptb import tokenize
from git_scale.metrics.segmentation import is_segmented, words_of

VECTORS = json.loads((Path(__file__).parent / "ptb_vectors.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("a dog \u4e00\u53ea\u72d7\u3002\u5750\u7740!", "a dog \u4e00 \u53ea \u72d7 \u5750 \u7740"),
        ("2\u5339\u306e\u72ac\u300110.5km", "2 \u5339 \u306e \u72ac 10.5 km"),
        (
            "\u30e9\u30fc\u30e1\u30f3\u30fb\u3046\u3069\u3093",
            "\u30e9 \u30fc \u30e1 \u30f3 \u3046 \u3069 \u3093",
        ),
        (
            "\u0e17\u0e35\u0e48\u0e19\u0e35\u0e48 DOG",
            "\u0e17\u0e35\u0e48 \u0e19\u0e35\u0e48 dog",
        ),  # marks stay on their letter
        (
            "\u101f\u101a\u103a\u101c\u102d\u102f \u1001\u103d\u1031\u1038",
            "\u101f \u101a\u103a \u101c\u102d\u102f \u1001\u103d\u1031\u1038",
        ),
        ("\u0f56\u0f7c\u0f51\u0f0b\u0f66\u0f90\u0f51\u0f0d", "\u0f56\u0f7c \u0f51 \u0f66\u0f90 \u0f51"),
        ("\U00020000\u3007", "\U00020000 \u3007"),
    ],
)
def test_characters_are_words_where_no_blank_divides_them(caption: str, words: str) -> None:
    assert is_segmented(caption)
    assert words_of(caption) == words.split()


def test_all_others_are_left_to_the_treebanks_rules() -> None:
    """Published scores do not move by a bit; of the Java program's answers two have such a script."""
    others = [(caption, words) for caption, words in VECTORS if not is_segmented(caption)]
    assert len(VECTORS) - len(others) == 2
    for caption, words in others:
        assert words_of(caption) == tokenize(caption)
        assert " ".join(words_of(caption)) == words
    assert words_of("\ud55c\uad6d\uc5b4 \uac1c\uac00") == ["\ud55c\uad6d\uc5b4", "\uac1c\uac00"]


@pytest.mark.parametrize("piece", ["\u72ac", "\u0e17\u0e35\u0e48", "\u72aca-", "\u3002", "\u0e35"])
def test_a_long_text_takes_a_time_in_proportion(piece: str) -> None:
    """A rule that tries every way to cut would not end."""
    assert len(words_of(piece * 20_000)) <= 40_000
