"""BLEU, ROUGE-L and CIDEr, by hand."""

from __future__ import annotations

import math

import pytest

from git_scale.errors import DataError
from git_scale.metrics.caption_metrics import caption_metrics

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


def test_captions_of_the_wrong_images_score_low() -> None:
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


NEARLY = {  # a sentence, and it with one other character
    "chinese": (
        "\u4e00\u53ea\u68d5\u8272\u7684\u72d7\u5750\u5728\u8349\u5730\u4e0a",
        "\u4e00\u53ea\u68d5\u8272\u7684\u732b\u5750\u5728\u8349\u5730\u4e0a\u3002",
    ),
    "japanese": (
        "\u8336\u8272\u3044\u72ac\u304c\u8349\u306e\u4e0a\u306b\u5ea7\u3063\u3066\u3044\u308b",
        "\u8336\u8272\u3044\u732b\u304c\u8349\u306e\u4e0a\u306b\u5ea7\u3063\u3066\u3044\u308b",
    ),
    "thai": (
        "\u0e2a\u0e38\u0e19\u0e31\u0e02\u0e19\u0e31\u0e48\u0e07\u0e1a\u0e19\u0e2b\u0e0d\u0e49\u0e32\u0e2a\u0e35\u0e40\u0e02\u0e35\u0e22\u0e27",
        "\u0e2a\u0e38\u0e19\u0e31\u0e02\u0e19\u0e2d\u0e19\u0e1a\u0e19\u0e2b\u0e0d\u0e49\u0e32\u0e2a\u0e35\u0e40\u0e02\u0e35\u0e22\u0e27",
    ),
    "khmer": (
        "\u1786\u17d2\u1780\u17c2\u17a2\u1784\u17d2\u1782\u17bb\u1799\u179b\u17be\u179f\u17d2\u1798\u17c5",
        "\u1786\u17d2\u1798\u17b6\u17a2\u1784\u17d2\u1782\u17bb\u1799\u179b\u17be\u179f\u17d2\u1798\u17c5",
    ),
}


@pytest.mark.parametrize("language", NEARLY)
def test_languages_without_blanks_are_scored(language: str) -> None:
    """A caption was one word, and all scores of nearly equal ones were 0."""
    generated, reference = NEARLY[language]
    other = "a photo of two men"
    scores = caption_metrics([generated, other], [[reference], [other]])
    assert scores["segmented_by_character"] == 0.5
    alone = caption_metrics([generated, "x"], [[reference], ["y z"]])
    assert 0.6 < alone["bleu_1"] < 1 and 0.3 < alone["rouge_l"] < 0.5 and alone["cider"] > 1
    wrong = caption_metrics([generated, "x"], [["\u0e50\u4e94\u516d"], ["y z"]])  # the negative control
    assert wrong["bleu_4"] < 1e-4 and wrong["cider"] == 0


def test_captions_with_blanks_are_scored_as_before() -> None:
    texts = [
        "A dog's red-and-white ball.",
        "\ud55c\uad6d\uc5b4 \uac1c\uac00 \ub2ec\ub9b0\ub2e4",
        "caf\u00e9 \u043f\u0440\u0438\u0432\u0435\u0442",
    ]
    assert caption_metrics(texts, [[text] for text in texts]).keys() == NAMES


def test_unusable_lists_are_refused() -> None:
    with pytest.raises(DataError, match=r"caption metrics: text 1 .* has no reference"):
        caption_metrics(["a", "b"], [["a"], []])
