"""Rows of VizWiz-VQA: questions that blind people asked about their own photographs.

    [{"image": "VizWiz_train_00000000.jpg", "question": "What's the name of this product?",
      "answers": [{"answer": "basil leaves", "answer_confidence": "yes"}], "answer_type": "other", "answerable": 1}]

The file is train.json, val.json or test.json, which has no answers. An image has one question, and its file name is
the question's id, by which the evaluation server knows it.
"""

from __future__ import annotations

from pathlib import Path

from git_scale.data.builders.formats import QUESTIONS, AnnotationFormat
from git_scale.data.builders.json_records import (
    MalformedRecordError,
    expecting,
    read_list,
    records_of,
    value_of,
)
from git_scale.data.builders.questions import QuestionList
from git_scale.data.builders.source_images import SourceRow
from git_scale.data.builders.writer import Skipped

KEPT = ("answer_type", "answerable")


def read_vizwiz_vqa(path: Path) -> list[SourceRow | Skipped]:
    """One row per image with its question and `answer_type` and `answerable`; before them what cannot be used.

    Raises DataError for a file of another form and for an image that stands twice.
    """
    asked = QuestionList(path)
    with expecting(path, "VizWiz-VQA", "a list of {image, question, answers: [{answer}]}"):
        for place, record in read_list(path, "questions"):
            if not isinstance(image := value_of(place, record, "image"), str):
                raise MalformedRecordError(f"{place}.image is not a text")
            asked.take_id(place, image, record.get("question"))
            given = records_of(record, "answers", place) if "answers" in record else []
            answers = [value_of(where, answer, "answer") for where, answer in given]
            more = {key: record[key] for key in KEPT if key in record}
            asked.ask(record, image, image, asked.texts(answers, image) if given else None, **more)
    return asked.rows(str)


FORMAT = AnnotationFormat(
    "VizWiz-VQA: train.json; keeps the image's name as question_id",
    (QUESTIONS,),
    lambda given: read_vizwiz_vqa(given["questions"]),
)
