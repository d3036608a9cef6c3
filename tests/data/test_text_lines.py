"""Text files as a source of samples: which lines there are, and what is no text."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from git_scale.data.store import open_store, prepare_store, problem_of
from git_scale.data.text_lines import MAX_LINE_BYTES, PART, lines_of
from git_scale.errors import DataError


def write(folder: Path, **files: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("_", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def texts_of(path: Path) -> list[str]:
    store = open_store(path)
    return [store.read(number).text.meta["text"] for number in range(len(store))]


def test_each_line_that_is_not_empty_is_a_sample(tmp_path: Path) -> None:
    one = "first line\n\nsecond \u4e2d\u6587 line\r\n\r\nlast without an end"
    two = "\n".join([json.dumps({"text": "of an object", "id": 7}), json.dumps("alone"), ""])
    folder = write(tmp_path / "texts", one_txt=one, two_jsonl=two)
    assert texts_of(folder) == [
        "first line",
        "second \u4e2d\u6587 line",
        "last without an end",
        "of an object",
        "alone",
    ]
    assert texts_of(folder / "one.txt") == texts_of(folder)[:3], "a file alone is a source too"
    store = open_store(folder)
    assert store.counts.tolist() == [3, 2]
    assert store.key(1) == "one.txt:byte 12"
    raw = store.read(1)
    assert (raw.key, raw.image, raw.frames, raw.text.captions) == (store.key(1), None, [], [])
    again = pickle.loads(pickle.dumps(store))  # as a loader's worker has it
    assert again.read(4).text == store.read(4).text
    with pytest.raises(IndexError):
        store.read(5)


def test_the_parts_of_the_ranks_make_up_the_whole(tmp_path: Path) -> None:
    folder = write(tmp_path / "texts", a_txt="1\n2", b_txt="3", c_txt="", d_txt="4\n5\n6")
    whole = open_store(folder)
    shared = open_store(folder, [prepare_store(folder, part, 3) for part in range(3)])
    assert shared.fingerprint == whole.fingerprint and len(shared) == 6
    assert [shared.read(number).text.meta["text"] for number in range(6)] == list("123456")


def test_a_long_file_has_parts_whose_contents_are_known(tmp_path: Path) -> None:
    lines = [f"line {number}" for number in range(2 * PART + 5)]
    folder = write(tmp_path / "texts", a_txt="\n".join(lines))
    store = open_store(folder)
    assert store.counts.tolist() == [PART, PART, 5]
    for number in (0, PART - 1, PART, 2 * PART + 4):
        assert store.read(number).text.meta["text"] == lines[number]
    held = open_store(write(tmp_path / "held", other_txt="\n".join(lines[PART : 2 * PART])))
    assert np.isin(held.contents, store.contents).all(), "what is trained on is told by its content"
    lines[PART + 7] += "!"
    changed = open_store(write(tmp_path / "changed", a_txt="\n".join(lines)))
    assert (changed.contents == store.contents).tolist() == [True, False, True]
    assert changed.fingerprint != store.fingerprint
    moved = open_store(write(tmp_path / "moved", a_txt="\n".join(f"line {n}" for n in range(2 * PART + 5))))
    assert moved.fingerprint == store.fingerprint


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("a.jsonl", b'{"caption": "x"}', r'the line is neither \{"text": "..."\} nor a text in quotes'),
        ("a.jsonl", b'{"text": 3}', r"the line is neither"),
        ("a.jsonl", b"{'text': 'x'}", r"the line is not valid JSON"),
        ("a.txt", b"\xff bad", r"the text is not UTF-8"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, name: str, line: bytes, said: str) -> None:
    """Behind what a look at the beginning of the file sees."""
    (tmp_path / name).write_bytes(b'"ok"\n' * 2000 + line)
    store = open_store(tmp_path / name)
    assert store.read(1999).text.meta["text"] in ("ok", '"ok"')
    with pytest.raises(DataError, match=f"{name}:byte 10000: {said}"):
        store.read(2000)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a text\n".encode("utf-16"), "UTF-16"),
        (b"a\xff\n", "is not UTF-8"),
        (b"\x1f\x8b\x08\x00 packed", "packed with gzip; unpack it"),
        (b"<!DOCTYPE html><html>\n", "a web page"),
        (b"zero\0byte\n", "a zero byte"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=f"a.txt: not a readable text file: .*{said}"):
        open_store(tmp_path / "a.txt")


def test_a_very_long_line_is_read_as_far_as_its_bound(tmp_path: Path) -> None:
    long = "\u4e2d" * MAX_LINE_BYTES
    folder = write(tmp_path / "texts", a_txt=f"{long}\nshort")
    assert texts_of(folder) == ["\u4e2d" * (MAX_LINE_BYTES // 3), "short"], "no half of a character"
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * MAX_LINE_BYTES}))
    with pytest.raises(DataError, match="a line of more than 65536 bytes: cut its text"):
        open_store(tmp_path / "a.jsonl").read(0)


def test_a_file_that_changes_under_a_run_is_noticed(tmp_path: Path) -> None:
    folder = write(tmp_path / "texts", a_txt="one\ntwo")
    store = open_store(folder)
    (folder / "a.txt").write_text("zero\none\ntwo")
    with pytest.raises(DataError, match="the file has changed since the start of the run"):
        store.read(0)


def test_lines_are_found_across_what_is_looked_at_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["a" * length for length in (1, 6, 7, 8, 13, 2)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    expected = lines_of(tmp_path, "a.txt")
    monkeypatch.setattr("git_scale.data.text_lines.LOOKED_AT", 7)
    found = lines_of(tmp_path, "a.txt")
    assert found.starts.tolist() == expected.starts.tolist() == [0, 2, 9, 17, 26, 40]
    assert found.lengths.tolist() == [len(line) for line in lines]


def test_folders_with_anything_else_are_none_of_texts(tmp_path: Path) -> None:
    folder = write(tmp_path / "photos", captions_txt="a.jpg a dog", a_jpg=b"\xff\xd8")
    assert "not a folder of text files alone" in problem_of(folder)
    assert "no such folder of tar shards" in problem_of(tmp_path / "missing")
    with pytest.raises(DataError, match="there is no sample in it"):
        open_store(write(tmp_path / "empty", a_txt="\n\r\n\n"))
