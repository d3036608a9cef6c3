from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections import Counter

import numpy as np
import pytest

from git_scale.data.captions import (
    DROPPED,
    MAX_CAPTION_BYTES,
    choose_captions,
    clean_caption,
    clean_captions,
    decode_text,
    parse_json,
)
from git_scale.errors import DataError


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  a dog\t on\r\n the \u00a0 grass \n", "a dog on the grass"),
        ("cafe\u0301", "caf\u00e9"),  # NFC
        ("a\x00b\x07c\x7f d", "abc d"),
        ("lone \ud800surrogate", "lone surrogate"),
        ("\U0001f468\u200d\U0001f469 joined", "\U0001f468\u200d\U0001f469 joined"),  # format characters stay
        ("", None),
        (" \n\x00\x1b ", None),
        ("\u200b", None),
        ("\ufeff \u200d\u2060\u00ad", None),
        ("\u200ba dog", "\u200ba dog"),
    ],
)
def test_clean_caption(text: str, clean: str | None) -> None:
    assert clean_caption(text) == clean


@pytest.mark.parametrize("unit", ["x", "\u00e9", "\U0001f600", "word "])
def test_length_is_bounded_in_bytes(unit: str) -> None:
    cleaned = clean_caption(unit * 1_000_000)
    assert cleaned is not None
    assert MAX_CAPTION_BYTES - 4 <= len(cleaned.encode()) <= MAX_CAPTION_BYTES


def test_no_character_is_dropped_but_control_characters_and_surrogates() -> None:
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        dropped = unicodedata.category(character) in ("Cc", "Cs") and not character.isspace()
        assert bool(DROPPED.fullmatch(character)) == dropped, hex(code)


def test_what_has_no_width_is_nothing_alone() -> None:
    """All format characters but those that show: numbers' signs, and what lays out hieroglyphs and shorthand."""
    found = [
        code
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code)) == "Cf" and clean_caption(chr(code)) is not None
    ]
    shown = [*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD]
    assert set(found) - set(shown) <= {
        *range(0x13430, 0x13440),
        *range(0x1BCA0, 0x1BCA4),
        *range(0x1D173, 0x1D17B),
    }
    assert clean_caption("\u0600") == "\u0600"


def test_clean_captions() -> None:
    assert clean_captions(["b", " ", "a ", "b"]) == ["b", "a"]
    for texts in ([], ["", "\n"]):
        with pytest.raises(DataError, match="no caption, or only empty ones"):
            clean_captions(texts)


def test_decode_text() -> None:
    assert decode_text(b"\xef\xbb\xbfcaf\xc3\xa9") == "caf\u00e9"
    for data, byte in ((b"caf\xe9", 3), (b"\xff\xfea\0", 0), (b"ok \xed\xa0\x80", 3)):
        with pytest.raises(DataError, match=rf"not UTF-8 \(byte {byte}\)"):
            decode_text(data)


def test_parse_json_keeps_everything() -> None:
    record = parse_json(b'{"captions": ["a"], "questions": [{"question": "q"}], "url": "u", "n": 1}')
    assert record.captions == ["a"] == record.clip_captions
    assert record.questions == [{"question": "q", "answers": []}]
    assert record.meta["url"] == "u"


@pytest.mark.parametrize(
    ("tree", "captions"),
    [
        ({"caption": "a"}, ["a"]),  # img2dataset
        ({"captions": "a"}, ["a"]),
        ({"captions": ["a", None, "b"]}, ["a", "b"]),
        ({"captions": None, "caption": ["a", "b"]}, ["a", "b"]),
        ({"captions": [], "caption": " ", "text": "a"}, ["a"]),
        ({"captions": ["a"], "caption": "other"}, ["a"]),
        ({"captions": ["\u200b"], "caption": "a"}, ["a"]),
        ({"sentences": [{"raw": "a", "tokens": ["a"]}, {"raw": "b"}]}, ["a", "b"]),
        ({"captions": [{"caption": "a", "id": 1}, {"caption": None, "text": "b"}]}, ["a", "b"]),
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([{"caption": "a"}], ["a"]),
        ({"captions": None, "url": "u"}, []),
        ({}, []),
    ],
)
def test_captions_in_the_forms_that_data_sets_have(tree: object, captions: list[str]) -> None:
    record = parse_json(json.dumps(tree).encode())
    assert record.captions == captions
    assert record.meta == (tree if isinstance(tree, dict) else {})


def test_clip_captions_take_the_same_forms() -> None:
    record = parse_json(b'{"caption": "still", "clip_captions": [{"raw": "moves"}, null]}')
    assert (record.captions, record.clip_captions) == (["still"], ["moves"])
    assert parse_json(b'{"caption": "still", "clip_captions": null}').clip_captions == ["still"]


@pytest.mark.parametrize(
    ("tree", "questions"),
    [
        ({"questions": [{"question": "q", "answer": "a"}]}, [("q", ["a"])]),
        ({"questions": [{"question": "q", "answers": "a"}]}, [("q", ["a"])]),
        ({"questions": [{"question": "q", "answers": ["a", None, "a"]}]}, [("q", ["a", "a"])]),
        ({"questions": [{"question": "q", "answers": [{"answer": "a", "answer_id": 1}]}]}, [("q", ["a"])]),
        ({"question": "q", "answer": "a", "id": 7}, [("q", ["a"])]),
        ({"questions": {"question": "q"}}, [("q", [])]),
        ({"questions": None}, []),
    ],
)
def test_questions_in_the_forms_that_data_sets_have(
    tree: dict[str, object], questions: list[tuple[str, list[str]]]
) -> None:
    record = parse_json(json.dumps(tree).encode())
    assert [(item["question"], item["answers"]) for item in record.questions] == questions


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"captions": True}, "captions is true, not a text"),
        ({"caption": 3}, "caption is 3, not a text"),
        ({"captions": ["a", 3]}, "captions is 3, not a text"),
        ({"captions": [["a"]]}, "captions is a list, not a text"),
        ({"captions": [{"url": "u"}]}, "captions is an object of url, not a text"),
        ({"captions": [{"raw": False}]}, "captions is false, not a text"),
        ({"questions": ["q"]}, 'questions hold "q", not'),
        ({"questions": [{"question": None, "answers": []}]}, "questions hold an object of question, answers"),
        ({"questions": [{"question": "q", "answers": [3]}]}, "answers is 3, not a text"),
        (7, "holds 7, not an object"),
        ([1], "the json is 1, not a text"),
    ],
)
def test_what_is_no_text_is_named(tree: object, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        parse_json(json.dumps(tree).encode())


def test_choose_captions() -> None:
    captions = list("abcde")
    draws = [choose_captions(captions, 1, np.random.default_rng(seed)) for seed in range(500)]
    counts = Counter(draw[0] for draw in draws)
    assert set(counts) == set(captions) and min(counts.values()) > 60  # of 100; sigma is 9
    three = [tuple(choose_captions(captions, 3, np.random.default_rng(seed))) for seed in range(500)]
    assert all(len(set(draw)) == 3 for draw in three)
    assert len(set(three)) > 50  # of 60 orders
    assert sorted(choose_captions(captions, 9, np.random.default_rng(0))) == captions
