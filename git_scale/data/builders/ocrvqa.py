"""Rows of OCR-VQA: questions about the covers of books.

    {"0004714083": {"imageURL": "http://.../51l6XIoa3rL.jpg", "questions": ["Who wrote this book?"],
                    "answers": ["Sandra Boynton"], "title": "...", "split": 1}}

The file is dataset.json; a cover lies at ID.jpg, with the ending of its URL, as the authors' program downloads it. A
question's id is its cover's and its place, "0004714083-0".
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from git_scale.data.builders.formats import QUESTIONS, AnnotationFormat, FormatOption
from git_scale.data.builders.json_records import (
    MalformedRecordError,
    expecting,
    kind_of,
    read_object,
    value_of,
)
from git_scale.data.builders.questions import QuestionList
from git_scale.data.builders.source_images import SourceRow
from git_scale.data.builders.splits import of_split
from git_scale.data.builders.writer import Skipped

SPLITS = {1: "train", 2: "val", 3: "test"}


def read_ocrvqa(path: Path, split: str | None = None) -> list[SourceRow | Skipped]:
    """One row per cover of the parts (all without them), with its questions; before them what cannot be used.

    Raises DataError for a file of another form and for a part that no cover has.
    """
    asked = QuestionList(path)
    with expecting(
        path,
        "OCR-VQA",
        "an object with ID: {imageURL, questions: [text], answers: [text], split: 1, 2 or 3}",
    ):
        covers = read_object(path)
        splits = {key: _split_of(key, cover) for key, cover in covers.items()}
        endings = {}
        for key in of_split(path, "cover", splits, split):
            endings[key] = _ask(key, covers[key], asked)
    return asked.rows(lambda key: f"{key}{endings[str(key)]}")


def _split_of(key: str, cover: object) -> str:
    if not isinstance(cover, dict):
        raise MalformedRecordError(f"{key!r:.200} is {kind_of(cover)}, not an object")
    number = value_of(key, cover, "split")
    if isinstance(number, bool) or not isinstance(number, int | float) or number not in SPLITS:
        raise MalformedRecordError(f"{key:.200}.split is {number!r:.60}, not 1, 2 or 3")
    return SPLITS[int(number)]


def _ask(key: str, cover: dict[str, Any], asked: QuestionList) -> str:
    """Takes the questions of one cover down; returns the ending of its file."""
    url, questions, answers = (value_of(key, cover, name) for name in ("imageURL", "questions", "answers"))
    if not isinstance(questions, list) or not isinstance(answers, list) or not isinstance(url, str):
        raise MalformedRecordError(
            f"{key:.200} has no imageURL that is a text, or no lists of questions and answers"
        )
    if len(questions) != len(answers):
        raise MalformedRecordError(f"{key:.200} has {len(questions)} questions, but {len(answers)} answers")
    for place, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        number = f"{key}-{place}"
        asked.ask({"question": question}, number, key, asked.texts([answer], number))
    try:
        return posixpath.splitext(urlsplit(url).path)[1]
    except ValueError as error:
        raise MalformedRecordError(f"{key:.200}.imageURL is {url!r:.60}, no address ({error})") from None


def _read(given: Mapping[str, Any]) -> list[SourceRow | Skipped]:
    return read_ocrvqa(given["questions"], given["split"])


FORMAT = AnnotationFormat(
    "OCR-VQA: dataset.json", (QUESTIONS, FormatOption("split", "train, val or test; all without it")), _read
)
