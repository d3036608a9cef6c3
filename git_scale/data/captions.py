"""From stored text to captions that can be tokenized."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from git_scale.errors import DataError

MAX_CAPTION_BYTES = 8192  # of utf-8: some 2000 words; a forged megabyte would cost seconds in the tokenizer


@dataclass(frozen=True)
class TextRecord:
    """What is said about a sample, as it was stored: neither cleaned nor cut."""

    captions: list[str]
    questions: list[dict[str, Any]] = field(default_factory=list)
    """Each `{"question": str, "answers": [str, ...]}`."""
    meta: dict[str, Any] = field(default_factory=dict)
    """The whole json object; empty for a txt."""

    @property
    def clip_captions(self) -> list[str]:
        """Captions of the clip where it has its own, else those of the sample."""
        return self.meta.get("clip_captions") or self.captions


def decode_text(data: bytes) -> str:
    """Strict UTF-8, with or without a byte order mark. Raises DataError naming the byte."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"the text is not UTF-8 (byte {error.start}); convert it and rebuild the shard"
        ) from None


def clean_caption(text: str) -> str | None:
    """One line in NFC without control characters, cut to MAX_CAPTION_BYTES; None when nothing is left."""
    text = text[:MAX_CAPTION_BYTES]  # characters: bounds the work of what follows
    # a lone surrogate (Cs), which json can spell, has no UTF-8; a control character (Cc) may be white space
    kept = (c for c in text if c.isspace() or unicodedata.category(c) not in ("Cc", "Cs"))
    line = " ".join(unicodedata.normalize("NFC", "".join(kept)).split())
    return line.encode("utf-8")[:MAX_CAPTION_BYTES].decode("utf-8", "ignore").rstrip() or None


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
    """The record of a json member. Raises DataError when it is not an object of the known form."""
    text = decode_text(data)
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the json is not valid: {error}") from None
    if not isinstance(meta, dict):
        raise DataError(f"the json holds a {type(meta).__name__}, not an object with captions")
    for name in ("captions", "clip_captions"):
        if not _is_texts(meta.get(name, [])):
            raise DataError(f"the json's {name} are not a list of strings")
    questions = meta.get("questions", [])
    if not isinstance(questions, list) or not all(map(_is_question, questions)):
        raise DataError('the json\'s questions are not a list of {"question": str, "answers": [str, ...]}')
    return TextRecord(meta.get("captions", []), questions, meta)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_question(value: object) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("question"), str)
        and _is_texts(value.get("answers", []))
    )
