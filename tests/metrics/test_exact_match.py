"""Exact match by hand."""

from __future__ import annotations

import pytest

from git_scale.errors import DataError
from git_scale.metrics.exact_match import EXACT_MATCH, normalize_text, require_references
from git_scale.metrics.metric import Prediction, Predictions


def test_share_of_texts_that_equal_any_reference() -> None:
    generated = ["two dogs", " A  Cat\n", "a bird", "a bird."]
    references = [["a dog", "two dogs"], ["a cat"], ["a fish"], ["a bird"]]
    said = [Prediction(0, "", "", "", text, right) for text, right in zip(generated, references, strict=True)]
    assert EXACT_MATCH.compute(Predictions(said)) == 0.5


@pytest.mark.parametrize(
    ("text", "normal"), [("  A\tCat\n", "a cat"), ("STRASSE", "strasse"), ("a bird.", "a bird.")]
)
def test_normalisation(text: str, normal: str) -> None:
    assert normalize_text(text) == normal


@pytest.mark.parametrize(
    ("generated", "references", "message"),
    [
        (["a"], [["a"], ["b"]], "1 generated texts but 2 lists"),
        ([], [], "no generated texts"),
        (["a", "b"], [["a"], []], "text 1 \\('b'\\) has no reference"),
    ],
)
def test_unusable_lists_are_refused(generated: list[str], references: list[list[str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        require_references("exact match", generated, references)
