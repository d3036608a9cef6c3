"""Texts of a sample that are there and not read, or not as they may be meant: found while a shard is indexed.

a.json {"captions": ["A"], "caption": "B"}      B is not read: `captions` come before `caption`
b.json {"captions": ["A"]}, b.txt "B"           B is not read: a .txt counts where the json has no caption
c.txt "A\\nB"                                    read as one caption, "A B"
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from git_scale.data.captions import (
    ANSWER_NAMES,
    ANSWER_PARTS,
    CAPTION_NAMES,
    CAPTION_PARTS,
    decode_text,
    parse_json,
    texts_under,
)
from git_scale.data.left_out import OTHER_TEXT, SEVERAL_LINES, LeftOutCounts
from git_scale.data.members import MemberKind, PlacedMember, TextHashes
from git_scale.errors import DataError


def hash_text(ending: str, data: bytes) -> TextHashes | None:
    """What an index remembers of a text until its samples are known; None for one that no sample can use."""
    try:
        return _hash_json(data) if ending == "json" else _hash_txt(decode_text(data))
    except DataError:
        return None


def count_other_texts(placed: Iterable[PlacedMember], reasons: LeftOutCounts) -> None:
    """`placed`: all members, sample by sample."""
    for _, members in groupby(placed, key=lambda item: item.sample):
        texts = {item.kind: item.member for item in members if item.kind in (MemberKind.JSON, MemberKind.TXT)}
        json, txt = texts.get(MemberKind.JSON), texts.get(MemberKind.TXT)
        if json and json.text and json.text.other:
            reasons.add(OTHER_TEXT, f"{json.stem}.json: {json.text.other}")
        elif json and txt and txt.text and json.text and json.text.captions:
            if not _is_said(txt.text, json.text):
                reasons.add(OTHER_TEXT, f"{txt.stem}.txt")
        elif txt and txt.text and len(txt.text.lines) > 1 and (json is None or json.text):
            reasons.add(SEVERAL_LINES, f"{txt.stem}.txt")


def _is_said(txt: TextHashes, json: TextHashes) -> bool:
    said = set(json.captions)
    return said.issuperset(txt.captions) or (bool(txt.lines) and said.issuperset(txt.lines))


def _hash_txt(text: str) -> TextHashes:
    lines = _lines(text.splitlines()) if "\n" in text.strip() else set[str]()
    return TextHashes(_hashes(_lines([text])), _hashes(lines))


def _hash_json(data: bytes) -> TextHashes:
    record = parse_json(data)
    other = _other_name(record.meta, CAPTION_NAMES, CAPTION_PARTS, record.captions)
    for question in record.questions:
        other = other or _other_name(question, ANSWER_NAMES, ANSWER_PARTS, question["answers"])
    return TextHashes(_hashes(_lines(record.captions)), other=other)


def _other_name(tree: dict[str, Any], names: tuple[str, ...], parts: tuple[str, ...], read: list[str]) -> str:
    """The first name under which there is a text that is not among those that are read; empty for none."""
    if sum(name in tree for name in names) < 2:
        return ""
    said = _lines(read)
    return next((name for name in names if not _lines(texts_under(tree, name, parts)) <= said), "")


def _lines(texts: Iterable[str]) -> set[str]:
    """Without differences in white space: clean_caption would cost a scan a third of its time."""
    return {line for text in texts if (line := " ".join(text.split()))}


def _hashes(texts: Iterable[str]) -> tuple[int, ...]:
    return tuple(map(hash, texts))  # in the place of the texts, which would fill the memory
