"""Which texts a score is taken over, and which metrics checkpoint.best may name."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from git_scale.errors import ConfigError
from git_scale.evaluation.scores import check_metric, score


@dataclass
class Said:
    index: int
    generated: str
    references: list[str] = field(default_factory=list)


def test_texts_without_a_reference_are_counted_and_not_scored() -> None:
    said = [Said(0, "a red square", ["a red square"]), Said(1, "a cat", ["a dog"]), Said(2, "who knows")]
    metrics = score("caption", said)
    assert metrics["exact_match"] == 0.5, "of the two that have a reference"
    assert (metrics["images"], metrics["texts"]) == (3.0, 3.0)
    assert score("vqa", [Said(0, "red", ["red"]), Said(0, "blue"), Said(1, "no")])["exact_match"] == 1.0
    assert score("caption", [Said(0, "who knows")]) == {"images": 1.0, "texts": 1.0}


def test_distinct_texts_are_a_share_of_all() -> None:
    said = [
        Said(number, "A  dog" if number else "a dog", [f"thing {number % 3}", "x"]) for number in range(6)
    ]
    metrics = score("caption", said)
    assert metrics["distinct"] == pytest.approx(1 / 6)
    assert metrics["distinct_references"] == pytest.approx(3 / 6)


def test_the_best_checkpoint_may_be_that_of_the_lowest_loss() -> None:
    for task in ("caption", "vqa"):
        check_metric(task, "loss")
    with pytest.raises(ConfigError, match=r"checkpoint.best='cider': with data.task=vqa it is one of .*loss"):
        check_metric("vqa", "cider")
