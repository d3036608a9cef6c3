"""Rows of ST-VQA: questions about the text in an image.

    {"data": [{"file_path": "coco-text/COCO_train2014_000000000036.jpg", "question": "What is written?",
               "answers": ["nc", "NC"], "question_id": 0, "set_name": "train", "dataset": "coco-text"}]}

The file is train_task_3.json or test_task_3.json, which has no answers. No part is held out as it is published: every
tenth image of the training file, in order of first mention, is --split heldout, and the others are --split train.
"""

from __future__ import annotations

from pathlib import Path

from git_scale.data.builders.formats import HELD_OUT, QUESTIONS, AnnotationFormat
from git_scale.data.builders.json_records import (
    MalformedRecordError,
    expecting,
    id_of,
    read_object,
    records_of,
    value_of,
)
from git_scale.data.builders.questions import QuestionList
from git_scale.data.builders.source_images import SourceRow
from git_scale.data.builders.splits import tenth_held_out
from git_scale.data.builders.writer import Skipped


def read_stvqa(path: Path, split: str | None = None) -> list[SourceRow | Skipped]:
    """One row per image of train or heldout (all without a split), with its questions; `image_id` is its path.

    Before them what cannot be used. Raises DataError for a file of another form and for a question_id that stands
    twice.
    """
    asked = QuestionList(path)
    with expecting(path, "ST-VQA", "an object with data: [{file_path, question, question_id, answers}]"):
        for place, record in records_of(read_object(path), "data"):
            number, file = id_of(place, record, "question_id"), value_of(place, record, "file_path")
            if not isinstance(file, str):
                raise MalformedRecordError(f"{place}.file_path is not a text")
            asked.take_id(place, number, record.get("question"))
            asked.ask(record, number, file, asked.given_answers(place, record, number))
    return tenth_held_out(path, asked.rows(str), split)


FORMAT = AnnotationFormat(
    "ST-VQA: train_task_3.json; keeps question_id",
    (QUESTIONS, HELD_OUT),
    lambda given: read_stvqa(given["questions"], given["split"]),
)
