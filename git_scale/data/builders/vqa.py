"""Rows of a VQA file: images with all their questions, each with the answers that people gave.

VQA v2: `questions` of one file joined with `annotations` of another; a test split has no annotations.
TextVQA: one file whose `data` holds both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from git_scale.data.builders.formats import QUESTIONS, AnnotationFormat, FormatOption
from git_scale.data.builders.json_records import (
    Id,
    expecting,
    id_of,
    read_object,
    records_of,
    value_of,
)
from git_scale.data.builders.questions import QuestionList
from git_scale.data.builders.source_images import SourceRow
from git_scale.data.builders.writer import Skipped
from git_scale.errors import DataError

TEXTVQA_NAME = "{image_id}.jpg"


def read_vqa(
    questions: Path, annotations: Path | None = None, image_name: str | None = None
) -> list[SourceRow | Skipped]:
    """One row per image, in order of first mention, with its image_id and all its questions.

    A question is `{"question": str, "answers": [str, ...], "question_id": int}`; a test split's has no answers.
    Before the rows what cannot be used: questions and answers that are no text, annotations of no question.
    `image_name`: the image's file name, a format of image_id; by default VQA v2's of the file's split
    ("COCO_val2014_{image_id:012d}.jpg") or TextVQA's.
    Raises DataError when a file is not of that form, when a question has no annotation, when an id stands twice, or
    when there are annotations beside TextVQA's file.
    """
    asked = QuestionList(questions)
    with expecting(
        questions,
        "VQA questions",
        "an object with questions: [{image_id, question, question_id}] (VQA v2) or data: [the same with"
        " answers] (TextVQA)",
    ):
        tree = read_object(questions)
        if "data" in tree:
            if annotations:
                raise DataError(f"{questions}: TextVQA's file holds its answers; leave --annotations out")
            _ask_textvqa(tree, asked)
            name = image_name or TEXTVQA_NAME
        else:
            _ask_vqa2(tree, _read_annotations(annotations, asked) if annotations else None, asked)
            name = image_name or _default_name(tree)
    return asked.rows(_namer(name))


def _default_name(tree: dict[str, Any]) -> str:
    split = tree.get("data_subtype")
    if not isinstance(split, str):
        raise DataError(
            "the questions name no data_subtype (split); give --image-name, a format of {image_id}"
        )
    split = split.replace("-dev", "")  # test-dev2015 asks about the images of test2015
    return f"COCO_{split}_{{image_id:012d}}.jpg"


@dataclass(frozen=True)
class _Annotation:
    """The answers to one question."""

    answers: list[str]
    image_id: Any
    """None where the annotation does not name its image."""


def _ask_vqa2(tree: dict[str, Any], annotations: dict[Id, _Annotation] | None, asked: QuestionList) -> None:
    for place, record in records_of(tree, "questions"):
        number, image = _ids_of(place, record, asked)
        answers = None
        if annotations is not None:
            if number not in annotations:
                raise DataError(
                    f"{asked.path}: question {number} has no annotation; are questions and annotations of one split?"
                )
            answers, theirs = annotations[number].answers, annotations[number].image_id
            if theirs not in (None, image):
                raise DataError(
                    f"{asked.path}: question {number} is about image_id {image!r:.200}, its annotation about"
                    f" {theirs!r:.200}; are both files of one data set?"
                )
        asked.ask(record, number, image, answers)
    for number in annotations or {}:
        if number not in asked.seen:
            item = Skipped(f"question_id {number}", "annotation of no question", "annotation")
            asked.skipped.append(item)


def _ask_textvqa(tree: dict[str, Any], asked: QuestionList) -> None:
    for place, record in records_of(tree, "data"):
        number, image = _ids_of(place, record, asked)
        asked.ask(record, number, image, asked.given_answers(place, record, number))


def _ids_of(place: str, record: dict[str, Any], asked: QuestionList) -> tuple[Id, Id]:
    """(question_id, image_id). Raises DataError for a question_id that was there before."""
    number, image = id_of(place, record, "question_id"), id_of(place, record, "image_id")
    asked.take_id(place, number, record.get("question"))
    return number, image


def _read_annotations(path: Path, asked: QuestionList) -> dict[Id, _Annotation]:
    with expecting(
        path,
        "VQA annotations",
        "an object with annotations: [{question_id, answers: [{answer}]}]",
    ):
        return _annotations(path, read_object(path), asked)


def _annotations(path: Path, tree: dict[str, Any], asked: QuestionList) -> dict[Id, _Annotation]:
    found: dict[Id, _Annotation] = {}
    for place, record in records_of(tree, "annotations"):
        number = id_of(place, record, "question_id")
        if number in found:
            raise DataError(
                f"{path}: question_id {number!r:.200} has two annotations, the second at {place}; remove one"
            )
        given = [value_of(where, item, "answer") for where, item in records_of(record, "answers", place)]
        found[number] = _Annotation(asked.texts(given, number), record.get("image_id"))
    return found


def _namer(image_name: str) -> Callable[[Id], str]:
    def name(image_id: Id) -> str:
        try:
            return image_name.format(image_id=image_id)
        except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError, MemoryError) as error:
            raise DataError(
                f"image name {image_name!r:.200} does not fit image_id {image_id!r:.200} ({error}); give --image-name"
            ) from None

    return name


FORMAT = AnnotationFormat(
    "VQA v2 or TextVQA JSON; keeps image_id and question_id",
    (
        QUESTIONS,
        FormatOption("annotations", "VQA v2's answers; none: a test split", is_file=True),
        FormatOption("image_name", "default: COCO_SPLIT_{image_id:012d}.jpg, TextVQA {image_id}.jpg"),
    ),
    lambda given: read_vqa(given["questions"], given["annotations"], given["image_name"]),
)
