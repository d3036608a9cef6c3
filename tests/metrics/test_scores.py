"""Which texts a score is taken over."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from git_scale.errors import ConfigError
from git_scale.metrics import METRICS
from git_scale.metrics.caption_metrics import caption_metrics
from git_scale.metrics.metric import Metric, Predictions
from git_scale.metrics.scores import judges, lower_is_better, score

CAPTIONS = ("exact_match", "distinct", "distinct_references", "cider")
ANSWERS = ("exact_match", "vqa_accuracy")


@dataclass
class Said:
    index: int
    generated: str
    references: list[str] = field(default_factory=list)
    domain: str = ""


def test_texts_without_a_reference_are_counted_and_not_scored() -> None:
    said = [Said(0, "a red square", ["a red square"]), Said(1, "a cat", ["a dog"]), Said(2, "who knows")]
    metrics = score(CAPTIONS, said)
    assert metrics["exact_match"] == 0.5, "of the two that have a reference"
    assert (metrics["images"], metrics["texts"]) == (3.0, 3.0)
    assert score(ANSWERS, [Said(0, "red", ["red"]), Said(0, "blue"), Said(1, "no")])["exact_match"] == 1.0
    assert score(CAPTIONS, [Said(0, "who knows")]) == {"images": 1.0, "texts": 1.0}


def test_distinct_texts_are_a_share_of_all() -> None:
    said = [
        Said(number, "A  dog" if number else "a dog", [f"thing {number % 3}", "x"]) for number in range(6)
    ]
    metrics = score(CAPTIONS, said)
    assert metrics["distinct"] == pytest.approx(1 / 6)
    assert metrics["distinct_references"] == pytest.approx(3 / 6)


def test_published_scores_share_their_work_and_are_those_of_all_at_once() -> None:
    said = [Said(0, "a red square", ["a red square"]), Said(1, "a big dog", ["a dog", "the dog"])]
    names = [*(f"bleu_{n}" for n in (1, 2, 3, 4)), "rouge_l", "cider"]
    expected = caption_metrics([item.generated for item in said], [item.references for item in said])
    found = score([*names, "segmented_by_character"], said)
    assert found == {**expected, "images": 2.0, "texts": 2.0}
    assert len(set(found.values())) > 4
    calls: list[int] = []
    texts, count = Predictions(said), lambda items: calls.append(len(items))
    texts.shared(count)
    texts.shared(count)
    assert calls == [2]


def test_a_metric_without_need_of_references_sees_every_text(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [Said(0, "one two", ["x"]), Said(1, "one two three four")]
    words = Metric(lambda texts: sum(len(text.split()) for text in texts.generated), needs_references=False)
    silent = Metric(lambda texts: None)
    monkeypatch.setattr(METRICS, "_added", {})
    METRICS.add("words_in_all", words)
    METRICS.add("silent", silent)
    assert score(["words_in_all", "silent"], said) == {"words_in_all": 6, "images": 2.0, "texts": 2.0}
    assert score(["words_in_all"], []) == {"images": 0.0, "texts": 0.0}


def test_what_only_describes_texts_does_not_judge_them() -> None:
    assert judges(CAPTIONS) == ["exact_match", "cider", "loss"]
    assert lower_is_better("loss") and not lower_is_better("cider")


def test_a_metric_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"raises": Metric(lambda texts: 1 / 0), "talks": Metric(lambda texts: "high")}  # type: ignore[arg-type, return-value]
    monkeypatch.setattr(METRICS, "_added", wrong | {"none": print})
    with pytest.raises(ZeroDivisionError) as caught:
        score(["raises"], [Said(0, "a", ["a"])])
    assert caught.value.__notes__ == ["in the metric raises"]
    with pytest.raises(TypeError, match="the metric talks gave 'high'"):
        score(["talks"], [Said(0, "a", ["a"])])
    with pytest.raises(ConfigError, match=r"metric=none: .* is no Metric"):
        score(["none"], [Said(0, "a", ["a"])])
    with pytest.raises(ValueError, match="better='bigger'"):
        Metric(lambda texts: 1.0, better="bigger")  # type: ignore[arg-type]
