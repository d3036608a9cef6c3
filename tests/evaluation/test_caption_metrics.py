"""BLEU, ROUGE-L and CIDEr, by hand."""

from __future__ import annotations

import math

import pytest

from git_scale.errors import DataError
from git_scale.evaluation.caption_metrics import caption_metrics

NAMES = {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"}


def test_a_small_case_by_hand() -> None:
    """Two images with one reference each; "A", "." and capitals show that both sides are tokenized."""
    scores = caption_metrics(["a dog runs fast", "A cat."], [["A dog runs."], ["the cat"]])
    # words: 6, of which a dog runs | cat are right: 4 / 6; pairs: 3 + 1 = 4, right: a dog, dog runs: 2 / 4
    assert scores["bleu_1"] == pytest.approx(4 / 6, abs=1e-6)  # 6 words against 5: no brevity penalty
    assert scores["bleu_2"] == pytest.approx(math.sqrt(4 / 6 * 2 / 4), abs=1e-6)
    # longest common subsequences: 3 of 4 and 3 of 3; 1 of 2 and 1 of 2; F with beta 1.2
    beta = 1.2**2
    first = (1 + beta) * 0.75 * 1 / (1 + beta * 0.75)
    assert scores["rouge_l"] == pytest.approx((first + 0.5) / 2, abs=1e-9)


def test_cider_by_hand() -> None:
    """Words only shared by no other image weigh log 2; the third of four n-gram lengths has no match."""
    scores = caption_metrics(["red dog", "cat"], [["red dog"], ["tall cat"]])
    # image 1: n = 1 and 2 match in full, 3 and 4 do not exist: mean (1 + 1 + 0 + 0) / 4
    # image 2: cosine 1 / sqrt 2 at n = 1, nothing beyond; lengths (counted in pairs) 0 and 1: exp(-1 / 72)
    expected = (10 * 2 / 4 + 10 * math.exp(-1 / 72) / math.sqrt(2) / 4) / 2
    assert scores["cider"] == pytest.approx(expected, abs=1e-9)


def test_perfect_captions() -> None:
    texts = ["a brown dog runs on the wet sand", "two men play chess in a quiet park"]
    scores = caption_metrics(texts, [[text.upper() + "!", "other words"] for text in texts])
    assert scores.keys() == NAMES
    for name in NAMES - {"cider"}:
        assert scores[name] == pytest.approx(1, abs=1e-6)
    assert 0 < scores["cider"] < 10  # the mean over all references
    assert caption_metrics(texts, [[text] for text in texts])["cider"] == pytest.approx(10)


def test_captions_of_the_wrong_pictures_score_low() -> None:
    texts = ["a brown dog runs on sand", "two men play chess"]
    scores = caption_metrics(texts[::-1], [[text] for text in texts])
    assert scores["cider"] == 0 and scores["rouge_l"] == 0 and scores["bleu_1"] < 1e-12


def test_one_image_has_no_cider() -> None:
    assert caption_metrics(["a dog"], [["a dog"]])["cider"] == 0


@pytest.mark.parametrize("reference", ["...", "a dog"])
def test_texts_without_words_are_scored(reference: str) -> None:
    scores = caption_metrics(["", "."], [[reference], [reference]])
    assert scores["bleu_4"] == scores["cider"] == 0 and scores.keys() == NAMES


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    caption_metrics(["a dog", "a cat"], [["a dog"], ["a cat"]])
    assert capfd.readouterr() == ("", "")


def test_unusable_lists_are_refused() -> None:
    with pytest.raises(DataError, match=r"caption metrics: text 1 .* has no reference"):
        caption_metrics(["a", "b"], [["a"], []])
