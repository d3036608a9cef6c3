"""Rows of a VQA file: images with all their questions, each with the answers that people gave.

VQA v2: `questions` of one file joined with `annotations` of another; a test split has no annotations.
TextVQA: one file whose `data` holds both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from git_scale.data.builders.formats import AnnotationFormat, FormatOption
from git_scale.data.builders.json_records import (
    Id,
    MalformedRecordError,
    id_of,
    kind_of,
    not_text,
    read_object,
    records_of,
    value_of,
)
from git_scale.data.builders.source_images import SourceRow, refuse_shared_files
from git_scale.data.builders.writer import Skipped
from git_scale.data.captions import clean_caption
from git_scale.errors import DataError

TEXTVQA_NAME = "{image_id}.jpg"
NO_ANSWER = "question without an answer"


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
    skipped: list[Skipped] = []
    try:
        tree = read_object(questions)
        if "data" in tree:
            if annotations:
                raise DataError(f"{questions}: TextVQA's file holds its answers; leave --annotations out")
            asked, name = list(_textvqa(tree, _Questions(questions, skipped))), TEXTVQA_NAME
        else:
            answers = _read_annotations(annotations, skipped) if annotations else None
            asked = list(_vqa2(tree, answers, _Questions(questions, skipped)))
            name = image_name or _default_name(tree)
    except MalformedRecordError as error:
        raise DataError(
            f"{questions}: not VQA questions ({error}); expected an object with questions:"
            " [{image_id, question, question_id}] (VQA v2) or data: [the same with answers] (TextVQA)"
        ) from None
    rows = _gather(asked, image_name or name)
    refuse_shared_files(questions, rows)
    return [*skipped, *rows]


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


def _vqa2(
    tree: dict[str, Any], annotations: dict[Id, _Annotation] | None, asked: _Questions
) -> Iterator[tuple[Id, dict[str, Any]]]:
    for place, record in records_of(tree, "questions"):
        number, image = asked.ids_of(place, record)
        answers: list[str] = []
        if annotations is not None:
            if number not in annotations:
                raise DataError(
                    f"{asked.path}: question {number} has no annotation; are questions and annotations of one split?"
                )
            answers, theirs = annotations[number].answers, annotations[number].image_id
            if theirs not in (None, image):
                raise DataError(
                    f"{asked.path}: question {number} is about image_id {image!r}, its annotation about {theirs!r};"
                    " are both files of one data set?"
                )
            if not answers:
                asked.skipped.append(Skipped(f"question_id {number}", NO_ANSWER, "question"))
                continue
        yield from asked.usable(record, number, image, answers)
    for number in annotations or {}:
        if number not in asked.seen:
            item = Skipped(f"question_id {number}", "annotation of no question", "annotation")
            asked.skipped.append(item)


def _textvqa(tree: dict[str, Any], asked: _Questions) -> Iterator[tuple[Id, dict[str, Any]]]:
    for place, record in records_of(tree, "data"):
        number, image = asked.ids_of(place, record)
        given = record.get("answers", [])
        if not isinstance(given, list):
            raise MalformedRecordError(f"{place}.answers is {kind_of(given)}, not a list")
        answers = _texts(given, number, asked.skipped)
        if given and not answers:
            asked.skipped.append(Skipped(f"question_id {number}", NO_ANSWER, "question"))
            continue
        yield from asked.usable(record, number, image, answers)


@dataclass(frozen=True)
class _Questions:
    """What has been read of a file of questions: no question_id comes twice."""

    path: Path
    skipped: list[Skipped]
    seen: set[Id] = field(default_factory=set)

    def ids_of(self, place: str, record: dict[str, Any]) -> tuple[Id, Id]:
        """(question_id, image_id). Raises DataError for a question_id that was there before."""
        number, image = id_of(place, record, "question_id"), id_of(place, record, "image_id")
        if number in self.seen:
            raise DataError(
                f"{self.path}: question_id {number!r} stands twice, again at {place} ({record.get('question')!r});"
                " give each question an id of its own"
            )
        self.seen.add(number)
        return number, image

    def usable(
        self, record: dict[str, Any], number: Id, image: Id, answers: list[str]
    ) -> Iterator[tuple[Id, dict[str, Any]]]:
        """The question under its image_id; nothing for one that is no text."""
        question = value_of(f"question {number}", record, "question")
        if isinstance(question, str):
            yield image, {"question": question, "answers": answers, "question_id": number}
        else:
            self.skipped.append(Skipped(f"question_id {number}", not_text("question", question), "question"))


def _read_annotations(path: Path, skipped: list[Skipped]) -> dict[Id, _Annotation]:
    try:
        return _annotations(path, read_object(path), skipped)
    except MalformedRecordError as error:
        raise DataError(
            f"{path}: not VQA annotations ({error}); expected an object with annotations:"
            " [{question_id, answers: [{answer}]}]"
        ) from None


def _annotations(path: Path, tree: dict[str, Any], skipped: list[Skipped]) -> dict[Id, _Annotation]:
    found: dict[Id, _Annotation] = {}
    for place, record in records_of(tree, "annotations"):
        number = id_of(place, record, "question_id")
        if number in found:
            raise DataError(
                f"{path}: question_id {number!r} has two annotations, the second at {place}; remove one"
            )
        given = [value_of(where, item, "answer") for where, item in records_of(record, "answers")]
        found[number] = _Annotation(_texts(given, number, skipped), record.get("image_id"))
    return found


def _texts(answers: list[Any], number: Id, skipped: list[Skipped]) -> list[str]:
    """The answers that are texts with a word in them."""
    usable: list[str] = []
    for answer in answers:
        if isinstance(answer, str) and clean_caption(answer):
            usable.append(answer)
        else:
            reason = "empty answer" if isinstance(answer, str) else not_text("answer", answer)
            skipped.append(Skipped(f"question_id {number}", reason, "answer"))
    return usable


def _gather(asked: Iterable[tuple[Id, dict[str, Any]]], image_name: str) -> list[SourceRow]:
    questions_of: dict[Id, list[dict[str, Any]]] = {}
    for image_id, question in asked:
        questions_of.setdefault(image_id, []).append(question)
    name_of = _namer(image_name)
    return [
        SourceRow(name_of(image_id), (), {"image_id": image_id}, tuple(questions))
        for image_id, questions in questions_of.items()
    ]


def _namer(image_name: str) -> Callable[[Id], str]:
    def name(image_id: Id) -> str:
        try:
            return image_name.format(image_id=image_id)
        except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError, MemoryError) as error:
            raise DataError(
                f"image name {image_name!r} does not fit image_id {image_id!r} ({error}); give --image-name"
            ) from None

    return name


FORMAT = AnnotationFormat(
    "VQA v2 or TextVQA JSON; keeps image_id and question_id",
    (
        FormatOption("questions", "the file of the questions", is_file=True, required=True),
        FormatOption("annotations", "VQA v2's answers; none: a test split", is_file=True),
        FormatOption("image_name", "default: COCO_SPLIT_{image_id:012d}.jpg, TextVQA {image_id}.jpg"),
    ),
    lambda given: read_vqa(given["questions"], given["annotations"], given["image_name"]),
)
