"""Text alone: stretches of a text, and what is measured of held-out ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from git_scale.config import DataConfig, RunConfig
from git_scale.data.captions import TextRecord
from git_scale.data.store import RawSample
from git_scale.errors import DataError
from git_scale.tasks.text_only import TextOnlyTask

BEGIN, END = 1, 2


def task_of(room: int) -> TextOnlyTask:
    run = RunConfig(data=DataConfig(max_text_tokens=room + 2))
    tokenizer: Any = SimpleNamespace(bos_id=BEGIN, eos_id=END, encode=lambda text: list(map(ord, text)))
    return TextOnlyTask(run, tokenizer)


def raw(text: object) -> RawSample:
    return RawSample("k", None, [], TextRecord([], meta={"text": text}))


def spelled(tokens: list[int]) -> str:
    return "".join({BEGIN: "<", END: ">"}.get(token, chr(token)) for token in tokens)


def test_a_short_text_is_learned_whole() -> None:
    (text,) = task_of(10).texts(raw("ab  c\n"), np.random.default_rng(0))
    assert spelled(text.tokens) == "<ab c>" and text.targets == [False, *5 * [True]]
    assert not text.has_image and not text.is_caption
    assert not task_of(10).has_image(raw("abc"))


def test_of_a_long_text_each_epoch_draws_where_it_begins() -> None:
    drawn = {
        spelled(task_of(4).texts(raw("abcdefg"), np.random.default_rng(seed))[0].tokens) for seed in range(60)
    }
    assert drawn == {"<abcd", "<bcde", "<cdef", "<defg>"}, "the end is learned behind the last words alone"


def test_held_out_texts_are_measured_stretch_by_stretch() -> None:
    texts = task_of(4).reference_texts(raw("abcdefghij"))
    assert [spelled(text.tokens) for text in texts] == ["<abcd", "<efgh", "<ij>"]
    assert [spelled(text.tokens) for text in task_of(4).reference_texts(raw("abcdefgh"))] == [
        "<abcd",
        "<efgh>",
    ]
    assert len(task_of(4).reference_texts(raw("x" * 100))) == 5
    assert task_of(4).queries(raw("abc")) == []


@pytest.mark.parametrize("text", [None, 3, "", " \u200b\n"])
def test_what_is_no_text_is_skipped(text: object) -> None:
    with pytest.raises(DataError, match="no text, or an empty one"):
        task_of(4).texts(raw(text), np.random.default_rng(0))
