"""Text and JSON of others: the byte-order mark, other encodings, keys that stand twice."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from git_scale.checkpoint.sources import read_json as read_foreign_config
from git_scale.data.builders.classes import names_of
from git_scale.data.builders.coco import read_coco
from git_scale.data.builders.ocrvqa import read_ocrvqa
from git_scale.data.builders.vqa import read_vqa
from git_scale.data.builders.youcook2 import read_youcook2
from git_scale.data.captions import parse_json as parse_sample
from git_scale.errors import DataError
from git_scale.parallel.ds_config import read_ds_config
from git_scale.text_files import decode_utf8, named, parse_json, read_json, read_text, whole_number

COCO = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "caf\u00e9"}]}
VQA = {"data": [{"image_id": "a", "question": "caf\u00e9?", "question_id": 1, "answers": ["yes"]}]}
READERS: list[tuple[Callable[[Path], Any], dict[str, Any]]] = [
    (read_json, {"a": ["caf\u00e9"]}),
    (read_coco, COCO),
    (read_vqa, VQA),
    (read_ds_config, {"zero_optimization": {"stage": 1}}),
    (read_foreign_config, {"model_type": "git"}),
    (lambda path: parse_sample(path.read_bytes()), {"captions": ["caf\u00e9"]}),
]


@pytest.mark.parametrize(("read", "tree"), READERS)
def test_json_with_a_byte_order_mark_is_read_as_without(
    tmp_path: Path, read: Callable[[Path], Any], tree: dict[str, Any]
) -> None:
    plain, marked = tmp_path / "plain.json", tmp_path / "marked.json"
    plain.write_text(json.dumps(tree, ensure_ascii=False), encoding="utf-8")
    marked.write_text(json.dumps(tree, ensure_ascii=False), encoding="utf-8-sig")
    assert marked.read_bytes() == codecs.BOM_UTF8 + plain.read_bytes()
    assert read(marked) == read(plain)


def test_text_without_its_mark(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"\xef\xbb\xbfa\r\nb")
    assert read_text(tmp_path / "t") == "a\r\nb"
    assert decode_utf8(b"") == ""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("a\nb".encode("utf-16"), "it is UTF-16, .* save it as UTF-8"),
        (codecs.BOM_UTF16_BE + "a".encode("utf-16-be"), "it is UTF-16"),
        ("ab\ncd".encode("utf-16-le"), "line 1: a zero byte; .* UTF-16, save it as UTF-8"),
        (b"a\nb\0", "line 2: a zero byte"),
        (b"a\n\ncaf\xe9\n", "line 3: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        (b"\xef\xbb\xbfa\ncaf\xe9", "line 2: byte 0xe9"),
    ],
)
def test_other_encodings_are_named_with_the_remedy(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_utf8(data)
    with pytest.raises(ValueError, match=message):
        parse_json(data)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '[{"b": {"x": 0, "a": [], "a": []}}]'])
def test_a_key_that_stands_twice_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="the key 'a' stands twice in one object"):
        parse_json(text.encode())
    assert "a" in json.dumps(json.loads(text))  # the negative control: json drops the first in silence


LONG = "key " * 1250
OVERLONG: list[tuple[Callable[[Path], Any], object]] = [
    (read_json, None),  # a key that stands twice
    (read_coco, {LONG: 1}),
    (read_coco, {"images": [{LONG: 1}], "annotations": []}),
    (read_coco, {"images": [{"id": LONG, "file_name": "a"}] * 2, "annotations": []}),
    (read_coco, {"images": [{"id": LONG + "\ud800", "file_name": "a"}], "annotations": []}),
    (read_vqa, {LONG: 1}),
    (read_vqa, {"data": [{LONG: 1}]}),
    (lambda path: read_ocrvqa(path, None), {LONG: 1}),
    (lambda path: read_ocrvqa(path, None), {LONG: {"split": 1}}),
    (lambda path: read_youcook2(path, path.parent), {"database": {LONG: 1}}),
    (lambda path: names_of([], path), {LONG: "a\ud800"}),
    (lambda path: names_of([], path), {LONG: "fox", "b": "fox"}),
    (lambda path: parse_sample(path.read_bytes()), {"captions": [{LONG: 1}]}),
]


@pytest.mark.parametrize(("read", "tree"), OVERLONG)
def test_a_refusal_is_short_however_long_a_key_is(
    tmp_path: Path, read: Callable[[Path], Any], tree: object
) -> None:
    """Each was printed whole."""
    (tmp_path / "a.json").write_text(json.dumps(tree) if tree else f'{{"{LONG}": 1, "{LONG}": 2}}')
    with pytest.raises((ValueError, DataError)) as caught:
        read(tmp_path / "a.json")
    assert len(str(caught.value)) < 1500 + len(str(tmp_path))


def test_a_refusal_names_eight_keys() -> None:
    assert named(["a", LONG, *"bcdefghij"]) == f"a, {LONG[:200]}, b, c, d, e, f, g"


def test_nesting_has_a_bound() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(b"[" * 100_000)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(b'{"a": 1}', mtime=0), "packed with gzip; unpack it"),
        (bz2.compress(b'{"a": 1}'), "packed with bzip2; unpack it"),
        (lzma.compress(b'{"a": 1}'), "packed with xz; unpack it"),
        (b"PK\x03\x04" + bytes(60), "packed with zip; unpack it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer, .*git lfs pull"),
        (b"\n<!DOCTYPE html>\n<html>", "a web page"),
        (b"", "it is empty"),
        (b" \n", "it is empty"),
    ],
)
def test_what_is_another_file_is_named_with_the_remedy(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "c.json").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("042", 42), ("0", 0), ("9" * 100, 10**100 - 1)),
        *((text, None) for text in ("", "-1", "1.0", " 1", "\u00b2", "9" * 5000)),
    ],
)
def test_a_whole_number_is_decimal_digits_of_bounded_length(text: str, number: int | None) -> None:
    assert whole_number(text) == number
