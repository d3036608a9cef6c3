"""CIDEr-D against pycocoevalcap's program."""

from __future__ import annotations

import random

import pytest
from pycocoevalcap.cider.cider import Cider

from git_scale.metrics.cider import cider_d


def published(generated: list[str], references: list[list[str]]) -> list[float]:
    said = {number: [text] for number, text in enumerate(generated)}
    return list(map(float, Cider().compute_score(dict(enumerate(references)), said)[1]))


@pytest.mark.parametrize("images", [1, 2, 300])
def test_it_is_that_of_pycocoevalcap(images: int) -> None:
    rng = random.Random(images)

    def caption() -> str:
        return " ".join(
            rng.choice("abcdefgh" * 3 + "ijklmnopqrs") for _ in range(rng.choice((0, 1, 2, 3, 5, 9, 30)))
        )

    references = [["a b", *(caption() for _ in range(rng.randint(0, 5)))] for _ in range(images)]
    generated = [rng.choice([caption(), rng.choice(texts), f"{texts[0]} {texts[0]}"]) for texts in references]
    found = cider_d(generated, references)
    assert found == pytest.approx(published(generated, references), abs=1e-9)
    assert (max(found) > 1) == (images == 300)  # of few images nothing is rare


def test_no_words_at_all_are_worth_nothing() -> None:
    assert cider_d(["", "a"], [[""], ["", ""]]) == [0.0, 0.0]
    assert cider_d([""], [[""]]) == cider_d(["a"], [["a"]]) == cider_d(["a b"], [["a"]]) == [0.0]
