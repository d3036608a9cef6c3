"""Classes that are generated as texts, by hand."""

from __future__ import annotations

import pytest

from git_scale.metrics.classification import CONTAINS, TOP_1, TOP_5
from git_scale.metrics.metric import Prediction, Predictions

NAMES = ("red fox", "ox", "fox", "wolf", "dog")


def predictions(*items: tuple[str, str, tuple[str, ...]]) -> Predictions:
    return Predictions(
        [
            Prediction(number, "", "", "", text, [right], ranking)
            for number, (text, right, ranking) in enumerate(items)
        ]
    )


def test_a_text_that_holds_the_name_counts() -> None:
    texts = predictions(("a Red  fox on snow", "red fox", ()), ("fox", "ox", ()), ("wolf", "dog", ()))
    assert CONTAINS.compute(texts) == pytest.approx(2 / 3)


def test_the_ranking_among_the_names() -> None:
    texts = predictions(("x", "red fox", NAMES), ("x", "Dog", NAMES), ("x", "cat", NAMES))
    assert TOP_1.compute(texts) == pytest.approx(1 / 3)
    assert TOP_5.compute(texts) == pytest.approx(2 / 3)


def test_what_was_not_ranked_is_not_scored() -> None:
    assert TOP_5.compute(predictions(("x", "ox", NAMES), ("x", "ox", NAMES[:1]))) is None
    assert TOP_1.compute(predictions(("x", "ox", ()))) is None
