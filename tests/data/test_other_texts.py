"""Texts that are there and not read are counted where a shard is indexed, with the name of the first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from git_scale.data.indexing import scan
from git_scale.data.left_out import OTHER_TEXT, SEVERAL_LINES
from git_scale.data.store import open_store


def left_out(path: Path, write_shard: Callable, tree: Any, txt: str | None) -> list[tuple[str, int, str]]:
    members = {"jpg": b"an image"}
    if tree is not None:
        members["json"] = json.dumps(tree).encode()
    if txt is not None:
        members["txt"] = txt.encode()
    shard = write_shard(path / "s.tar", [("a", members), ("b", members)])
    return [tuple(item) for item in scan(shard).summary.left_out]


@pytest.mark.parametrize(
    ("tree", "txt", "name"),
    [
        ({"captions": ["A"], "caption": "B", "text": "C"}, None, "a.json: caption"),
        ({"captions": ["A"], "sentences": [{"raw": "A"}, {"raw": "B"}]}, None, "a.json: sentences"),
        ({"caption": "A", "text": "B"}, None, "a.json: text"),
        ({"captions": ["A"]}, "B", "a.txt"),
        (["A", "C"], "B\n", "a.txt"),
        ({"question": "what?", "answers": ["x"], "answer": "y"}, "A", "a.json: answer"),
    ],
)
def test_a_text_that_is_not_read_is_counted(
    tmp_path: Path, write_shard: Callable, tree: Any, txt: str | None, name: str
) -> None:
    assert left_out(tmp_path, write_shard, tree, txt) == [(OTHER_TEXT, 2, name)]


@pytest.mark.parametrize(
    ("tree", "txt"),
    [
        ({"captions": ["A  dog"], "caption": "A dog"}, None),
        ({"caption": "A", "text": None, "sentences": [" "]}, "A\n"),
        ({"captions": ["A", "B"]}, "A\nB\n"),
        ({"captions": ["A B"]}, "A\nB\n"),
        ({"captions": ["A"], "text": 5}, None),
        ({"captions": []}, "A"),
        ({"captions": 5}, "A\nB"),
        ({"questions": [{"question": "what?", "answers": ["x", "y"], "answer": "x"}]}, None),
    ],
    ids=str,
)
def test_what_is_said_twice_or_is_no_text_is_not(
    tmp_path: Path, write_shard: Callable, tree: Any, txt: str | None
) -> None:
    assert left_out(tmp_path, write_shard, tree, txt) == []


@pytest.mark.parametrize("tree", [None, {"captions": []}])
def test_a_text_of_several_lines_is_one_caption_and_counted(
    tmp_path: Path, write_shard: Callable, tree: Any
) -> None:
    assert left_out(tmp_path, write_shard, tree, "x\ny\n\nz\n") == [(SEVERAL_LINES, 2, "a.txt")]
    assert open_store(tmp_path).read_text(0).captions == ["x\ny\n\nz\n"]
    assert left_out(tmp_path, write_shard, tree, "\n x y z\n\n") == []


def test_it_is_said_at_the_start(
    tmp_path: Path, write_shard: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    left_out(tmp_path, write_shard, {"captions": ["A"]}, "B")
    open_store(tmp_path)
    assert f"{OTHER_TEXT}: 2 of 2 samples (100 %), e.g. 'a.txt'" in caplog.text
