"""Captions and questions as tokens: what is predicted, what is asked, and what is cut."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from git_scale.config import RunConfig
from git_scale.data.captions import TextRecord
from git_scale.data.store import RawSample
from git_scale.data.texts import Text
from git_scale.errors import DataError
from git_scale.tasks import build_task

BEGIN, END = 1000, 1001


class Letters:
    """A tokenizer whose tokens are the characters' code points."""

    path, fingerprint, vocab_size, pad_id = Path("letters"), "", 2000, 0
    bos_id, eos_id = BEGIN, END

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(map(chr, ids))


def task_of(**data: Any) -> Any:
    run = RunConfig.model_validate({"data": data})
    return build_task(run.data.task, run, Letters())


def sample(captions: list[str], questions: list[dict[str, Any]] | None = None, **meta: Any) -> RawSample:
    return RawSample("a.tar:7", b"", [], TextRecord(captions, questions or [], meta))


def spelled(text: Text) -> str:
    """Predicted tokens in upper case; < begins, > ends."""
    letters = {BEGIN: "<", END: ">"}
    return "".join(
        (letters.get(token) or (chr(token).upper() if target else chr(token)))
        for token, target in zip(text.tokens, text.targets, strict=True)
    )


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


QUESTIONS = [
    {"question": "what?", "answers": ["one"] * 3 + ["two"], "question_id": 70},
    {"question": "why?", "answers": ["so"], "question_id": 71},
    {"question": "who?", "answers": [], "question_id": 72},
]


def test_all_of_a_caption_and_the_end_are_predicted() -> None:
    (text,) = task_of().texts(sample(["a cat"]), rng())
    assert spelled(text) == "<A CAT>"
    assert text.targets == [False] + [True] * 6, "never the begin token, always the end token"


def test_only_the_answer_and_the_end_are_predicted() -> None:
    texts = task_of(task="vqa", texts_per_image=5).texts(sample([], QUESTIONS), rng())
    assert sorted(map(spelled, texts))[-1] == "<why?SO>"
    assert {spelled(text)[:6] for text in texts} == {"<what?", "<why?S"}, (
        "a question without answer is no text"
    )
    assert all(text.targets[-1] and sum(text.targets) in (3, 4) for text in texts)


def test_answers_are_drawn_anew_as_often_as_annotators_gave_them() -> None:
    task = task_of(task="vqa")
    one = {"question": "what?", "answers": ["one"] * 3 + ["two"]}
    drawn = [spelled(task.texts(sample([], [one]), rng(seed))[0]) for seed in range(400)]
    assert set(drawn) == {"<what?ONE>", "<what?TWO>"}
    assert 0.68 < drawn.count("<what?ONE>") / 400 < 0.82  # 0.75, four deviations of 0.022 and more
    assert drawn == [spelled(task.texts(sample([], [one]), rng(seed))[0]) for seed in range(400)]


def test_of_a_question_the_first_40_tokens_are_seen_and_of_those_the_last_38_kept() -> None:
    """By hand, as the authors' inference does: 45 tokens, cut to 0..39, of which 2..39 stay."""
    letters = [chr(ord("A") + number) for number in range(45)]
    questions = [{"question": "".join(letters), "answers": ["y"]}]
    task = task_of(task="vqa", max_text_tokens=40)
    (query,) = task.queries(sample([], questions))
    assert query.prefix == [BEGIN, *map(ord, letters[2:40])]
    (text,) = task.texts(sample([], questions), rng())
    assert text.tokens == [BEGIN, *map(ord, letters[3:40]), ord("y"), END], "the answer takes one of the 38"


def test_a_long_question_loses_its_beginning_and_keeps_its_answer() -> None:
    task = task_of(task="vqa", max_text_tokens=10)
    long = [{"question": "abcdefgh?", "answers": ["yes"]}]
    (text,) = task.texts(sample([], long), rng())
    assert spelled(text) == "<efgh?YES>"
    (query,) = task.queries(sample([], long))
    assert query.prefix == [BEGIN, *map(ord, "bcdefgh?")], "max_text_tokens - 2 of the question"


def test_an_answer_longer_than_all_the_room_is_cut() -> None:
    task = task_of(task="vqa", max_text_tokens=6)
    (text,) = task.texts(sample([], [{"question": "q?", "answers": ["abcdefgh"]}]), rng())
    assert spelled(text) == "<ABCD>"


def test_queries_carry_the_benchmarks_numbers() -> None:
    (caption,) = task_of().queries(sample(["a cat", " a  cat "], image_id=42))
    assert (caption.prefix, caption.references, caption.identity) == ([BEGIN], ["a cat"], 42)
    asked = task_of(task="vqa").queries(sample([], QUESTIONS))
    assert [query.identity for query in asked] == [70, 71, 72]
    assert [query.question for query in asked] == ["what?", "why?", "who?"]
    assert [query.references for query in asked] == [["one", "one", "one", "two"], ["so"], []]
    assert asked[0].prefix == [BEGIN, *map(ord, "what?")]


def test_without_numbers_the_key_stands_for_them() -> None:
    (caption,) = task_of().queries(sample(["a cat"]))
    (question,) = task_of(task="vqa").queries(sample([], [{"question": "q?", "answers": ["a"]}]))
    assert (caption.identity, question.identity) == ("a.tar:7", "a.tar:7#0")


def test_an_image_of_a_test_server_has_no_references() -> None:
    (query,) = task_of().queries(sample([], image_id=1))
    assert query.references == []


@pytest.mark.parametrize(
    ("data", "raw", "message"),
    [
        ({}, sample([]), "no caption"),
        ({}, sample(["", "  "]), "no caption"),
        (
            {},
            sample([], url="u", width=3),
            "no caption: its json holds url, width, but none of captions, caption",
        ),
        ({"task": "vqa"}, sample(["a cat"]), "no question with an answer"),
        ({"task": "vqa"}, sample([], [{"question": "q?", "answers": [" "]}]), "no question with an answer"),
    ],
)
def test_nothing_to_learn_is_an_error(data: dict[str, Any], raw: RawSample, message: str) -> None:
    with pytest.raises(DataError, match=message):
        task_of(**data).texts(raw, rng())


def test_nothing_to_ask_is_an_error() -> None:
    with pytest.raises(DataError, match="no question"):
        task_of(task="vqa").queries(sample(["a cat"]))
    with pytest.raises(DataError, match="no caption"):
        task_of().queries(sample([""]))


@pytest.mark.parametrize("value", [None, [7], {"a": 1}, True, 1.5])
def test_an_id_that_is_no_number_or_text_is_none(value: Any) -> None:
    (query,) = task_of().queries(sample(["a"], image_id=value))
    assert query.identity == "a.tar:7"
    asked = [{"question": "q", "answers": [], "question_id": value}]
    (query,) = task_of(task="vqa").queries(sample([], asked))
    assert query.identity == "a.tar:7#0"
