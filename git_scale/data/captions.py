"""From stored text to captions that can be tokenized."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from git_scale import text_files
from git_scale.errors import DataError

CAPTION_NAMES = (
    "captions",
    "caption",
    "text",
    "sentences",
)  # caption: img2dataset; sentences: Karpathy's splits
CAPTION_PARTS = ("caption", "raw", "text")
ANSWER_NAMES = ("answers", "answer")
ANSWER_PARTS = ("answer",)
# Control characters that are no white space, and lone surrogates, which json can spell and UTF-8 cannot.
DROPPED = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")
HALVES = re.compile(r"[\ud800-\udfff]")  # the latter alone: halves of a character that UTF-16 spells in two
# What has no width: soft hyphens, marks of direction, joiners, tags. Within words and emoji they stay.
NOTHING_VISIBLE = re.compile(
    r"[\s\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]*"
)
MAX_CAPTION_BYTES = 8192  # of utf-8: some 2000 words; a forged megabyte would cost seconds in the tokenizer


@dataclass(frozen=True)
class TextRecord:
    """Holds what is said about a sample, as it was stored: neither cleaned nor cut."""

    captions: list[str]
    questions: list[dict[str, Any]] = field(default_factory=list)
    """Each `{"question": str, "answers": [str, ...]}`, and what else was stored of it."""
    meta: dict[str, Any] = field(default_factory=dict)
    """The whole json object; empty for a txt."""
    own_clip_captions: list[str] = field(default_factory=list)

    @property
    def clip_captions(self) -> list[str]:
        """Captions of the clip where it has its own, else those of the sample."""
        return self.own_clip_captions or self.captions


def decode_text(data: bytes) -> str:
    """Strict UTF-8, with or without a byte order mark. Raises DataError naming the byte."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"the text is not UTF-8 (byte {error.start}); convert it and rebuild the shard"
        ) from None


def clean_caption(text: str) -> str | None:
    """One line in NFC without control characters, cut to MAX_CAPTION_BYTES; None when nothing visible is left."""
    line = clean_text(text[:MAX_CAPTION_BYTES])  # characters: bounds the work
    return None if line is None else line.encode()[:MAX_CAPTION_BYTES].decode("utf-8", "ignore").rstrip()


def clean_text(text: str) -> str | None:
    """One line in NFC without control characters; None when nothing visible is left."""
    line = " ".join(unicodedata.normalize("NFC", DROPPED.sub("", text)).split())
    return None if NOTHING_VISIBLE.fullmatch(line) else line


def clean_captions(texts: Iterable[str]) -> list[str]:
    """The distinct captions of `texts` in their order. Raises DataError when none is left."""
    captions = list(dict.fromkeys(filter(None, map(clean_caption, texts))))
    if not captions:
        raise DataError("no caption, or only empty ones")
    return captions


def choose_captions(captions: list[str], texts_per_image: int, rng: np.random.Generator) -> list[str]:
    """`texts_per_image` of the captions in random order; all of them when there are fewer."""
    return [captions[number] for number in rng.permutation(len(captions))[:texts_per_image]]


def parse_json(data: bytes) -> TextRecord:
    """The record of a json member: an object, or its captions alone. Null and empty are as good as absent.

    captions        `captions`, or else `caption`, `text` or `sentences`: a string, or a list of strings or of objects
                    with one of `caption`, `raw` or `text`; `clip_captions` likewise
    questions       `questions`: a list of `{"question": str}` with `answers` or `answer`: a string, or a list of
                    strings or of `{"answer": str}`; or one such question in the place of the list

    Raises DataError naming what can't be read: a number or a truth value is no text, a key that stands twice no key.
    """
    try:
        meta = text_files.parse_json(data)
    except ValueError as error:
        raise DataError(f"the json is not valid: {error}") from None
    if isinstance(meta, str | list):
        return TextRecord(_texts(meta, "the json", CAPTION_PARTS))
    if not isinstance(meta, dict):
        raise DataError(f"the json holds {_described(meta)}, not an object with captions")
    captions = _first_texts(meta, CAPTION_NAMES, CAPTION_PARTS)
    clip_captions = _first_texts(meta, ("clip_captions",), CAPTION_PARTS)
    return TextRecord(captions, _questions(meta), meta, clip_captions)


def _first_texts(tree: dict[str, Any], names: tuple[str, ...], parts: tuple[str, ...]) -> list[str]:
    """The texts under the first of the names that has any that is not empty."""
    for name in names:
        texts = _texts(tree.get(name), name, parts)
        if not all(map(NOTHING_VISIBLE.fullmatch, texts)):
            return texts
    return []


def texts_under(tree: dict[str, Any], name: str, parts: tuple[str, ...]) -> list[str]:
    """The texts under a name that need not be read; none for what is no text."""
    try:
        return _texts(tree.get(name), name, parts)
    except DataError:
        return []


def _texts(value: object, name: str, parts: tuple[str, ...]) -> list[str]:
    """A string, or a list of strings or objects, as texts; `parts`: where an object has its text."""
    items = value if isinstance(value, list) else [value]
    return [text for item in items for text in _text(item, name, parts)]


def _text(item: object, name: str, parts: tuple[str, ...]) -> list[str]:
    if isinstance(item, dict):
        item = next((item[part] for part in parts if item.get(part) is not None), item)
    if item is None:
        return []
    if not isinstance(item, str):
        raise DataError(f"{name} is {_described(item)}, not a text; mend it and rebuild the shard")
    return [item]


def _questions(meta: dict[str, Any]) -> list[dict[str, Any]]:
    found = meta.get("questions")
    if found is None:
        found = [meta] if isinstance(meta.get("question"), str) else []
    items = found if isinstance(found, list) else [found]
    return [_question(item) for item in items if item is not None]


def _question(item: object) -> dict[str, Any]:
    if not isinstance(item, dict) or not isinstance(item.get("question"), str):
        raise DataError(f'questions hold {_described(item)}, not {{"question": str, "answers": [str, ...]}}')
    return {**item, "answers": _first_texts(item, ANSWER_NAMES, ANSWER_PARTS)}


def _described(value: object) -> str:
    """`a list`, or a short value as json spells it."""
    if isinstance(value, dict | list):
        return "a list" if isinstance(value, list) else f"an object of {text_files.named(value) or 'nothing'}"
    return json.dumps(value)[:80]
