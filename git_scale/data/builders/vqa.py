"""Rows of a VQA file: pictures with all their questions, each with the answers that people gave.

VQA v2: `questions` of one file joined with `annotations` of another; a test split has no annotations.
TextVQA: one file whose `data` holds both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from git_scale.data.builders.pictures import Row
from git_scale.errors import DataError

TEXTVQA_NAME = "{image_id}.jpg"


def read_vqa(questions: Path, annotations: Path | None = None, image_name: str | None = None) -> list[Row]:
    """One row per picture, in order of first mention, with its image_id and all its questions.

    A question is `{"question": str, "answers": [str, ...], "question_id": int}`; a test split's has no answers.
    `image_name`: the picture's file name, a format of image_id; by default VQA v2's of the file's split
    ("COCO_val2014_{image_id:012d}.jpg") or TextVQA's.
    Raises DataError when a file is not of that form, or when a question has no annotation.
    """
    tree = _read_json(questions)
    try:
        if "data" in tree:
            return _gather(_textvqa(tree["data"]), image_name or TEXTVQA_NAME)
        answers = _answers(annotations) if annotations else None
        return _gather(_vqa2(tree["questions"], answers), image_name or _default_name(tree))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{questions}: not VQA questions ({type(error).__name__}: {error}); expected an object with questions:"
            " [{image_id, question, question_id}] (VQA v2) or data: [the same with answers] (TextVQA)"
        ) from None


def _default_name(tree: dict[str, Any]) -> str:
    if "data_subtype" not in tree:
        raise DataError(
            "the questions name no data_subtype (split); give --image-name, a format of {image_id}"
        )
    split = str(tree["data_subtype"]).replace("-dev", "")  # test-dev2015 asks about the pictures of test2015
    return f"COCO_{split}_{{image_id:012d}}.jpg"


def _vqa2(
    questions: list[dict[str, Any]], answers: dict[Any, list[str]] | None
) -> Iterator[tuple[Any, dict[str, Any]]]:
    for question in questions:
        number = question["question_id"]
        if answers is not None and number not in answers:
            raise DataError(
                f"question {number} has no annotation; are questions and annotations of one split?"
            )
        yield question["image_id"], _question(question, answers[number] if answers is not None else [])


def _textvqa(questions: list[dict[str, Any]]) -> Iterator[tuple[Any, dict[str, Any]]]:
    for question in questions:
        yield (
            question["image_id"],
            _question(question, [str(answer) for answer in question.get("answers", [])]),
        )


def _question(question: dict[str, Any], answers: list[str]) -> dict[str, Any]:
    return {
        "question": str(question["question"]),
        "answers": answers,
        "question_id": question["question_id"],
    }


def _answers(path: Path) -> dict[Any, list[str]]:
    tree = _read_json(path)
    try:
        return {
            item["question_id"]: [str(answer["answer"]) for answer in item["answers"]]
            for item in tree["annotations"]
        }
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not VQA annotations ({type(error).__name__}: {error}); expected an object with annotations:"
            " [{question_id, answers: [{answer}]}]"
        ) from None


def _gather(asked: Iterator[tuple[Any, dict[str, Any]]], image_name: str) -> list[Row]:
    questions_of: dict[Any, list[dict[str, Any]]] = {}
    for image_id, question in asked:
        questions_of.setdefault(image_id, []).append(question)
    name_of = _namer(image_name)
    return [
        Row(name_of(image_id), (), {"image_id": image_id}, tuple(questions))
        for image_id, questions in questions_of.items()
    ]


def _namer(image_name: str) -> Callable[[Any], str]:
    def name(image_id: Any) -> str:
        try:
            return image_name.format(image_id=image_id)
        except (ValueError, LookupError, AttributeError) as error:
            raise DataError(
                f"image name {image_name!r} does not fit image_id {image_id!r} ({error}); give --image-name"
            ) from None

    return name


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a readable JSON file: {error}") from None
    if not isinstance(tree, dict):
        raise DataError(f"{path}: holds a {type(tree).__name__}, not an object of a VQA file")
    return tree
