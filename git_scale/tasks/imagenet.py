"""Kaggle's file of the ImageNet Object Localization Challenge: up to five classes of an image, each with a box.

    ImageId,PredictionString
    ILSVRC2012_test_00000001,n01440764 0 0 499 374 n01443537 0 0 499 374

A classifier knows of no place, so that its boxes are the whole image: corners in pixels of the published file,
counted from 0 as in LOC_val_solution.csv.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from git_scale.data.class_names import read_class_keys
from git_scale.metrics.metric import Prediction
from git_scale.tasks.submissions import Asked, Row, Submission, image_id, refuse_mark
from git_scale.text_files import read_text

COLUMNS = ["ImageId", "PredictionString"]
MOST = 5  # of an image's classes
FIELDS = 5  # a class and its box
NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


def _flaw_of_sample(sample: Mapping[str, Any]) -> str:
    size = sample.get("width"), sample.get("height")
    if all(type(side) is int and side > 0 for side in size):
        return ""
    return (
        f"its width and height are {size[0]} and {size[1]}, and the server wants a box in pixels: build the shards"
        " with tools/prepare_data.py classes --unlabelled FILE"
    )


def _prediction_string(asked: Asked, said: Prediction) -> str:
    box = f"0 0 {asked.sample['width'] - 1} {asked.sample['height'] - 1}"
    return " ".join(f"{asked.classes.of_name[name]} {box}" for name in said.ranking[:MOST])


def _flaw_of_answer(asked: Asked, answer: str) -> str:
    fields = answer.split()
    if len(fields) % FIELDS:
        return "PredictionString of fields that are no multiple of five"
    if len(fields) > MOST * FIELDS:
        return "PredictionString of more than five classes"
    for at in range(0, len(fields), FIELDS):
        key, *box = fields[at : at + FIELDS]
        if key not in asked.classes.known:
            return "PredictionString with an unknown class"
        if not all(map(NUMBER.fullmatch, box)):
            return "PredictionString with a box that is no four numbers"
        left, top, right, bottom = map(float, box)
        if left > right or top > bottom:
            return "PredictionString with a box that is not x_min y_min x_max y_max"
        if right > asked.sample["width"] or bottom > asked.sample["height"]:
            return "PredictionString with a box that ends outside the image"
    return ""


def _write(answers: Iterable[tuple[Asked, str]]) -> str:
    buffer = io.StringIO()
    rows = csv.writer(buffer, lineterminator="\n")
    rows.writerow(COLUMNS)
    rows.writerows((item.id, text) for item, text in answers)
    return buffer.getvalue()


def _read(path: Path) -> Iterator[Row]:
    text = read_text(path)
    refuse_mark(path)
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)  # else a quote swallows lines
    try:
        if (header := next(rows, [])) != COLUMNS:
            raise ValueError(f"line 1 is to be {','.join(COLUMNS)}, and is {','.join(header)[:60]!r}")
        for row in filter(None, rows):
            place = f"line {rows.line_num}"
            if len(row) != len(COLUMNS):
                raise ValueError(f"{place}: {','.join(COLUMNS)} is wanted, found {','.join(row)[:60]!r}")
            yield Row(place, row[0], row[1])
    except csv.Error as error:
        raise ValueError(f"line {rows.line_num}: {error}") from None


IMAGENET = Submission(
    "classification",
    image_id,
    "ImageId",
    (str,),
    "submission.csv",
    write=_write,
    read=_read,
    answer=_prediction_string,
    classes=read_class_keys,
    flaw_of_sample=_flaw_of_sample,
    flaw_of_answer=_flaw_of_answer,
)
