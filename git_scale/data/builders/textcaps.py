"""Rows of TextCaps: one record per caption, with the image that it is about.

    {"data": [{"image_id": "e9f4c9b0fd6a3d2b", "caption_str": "A sign that says exit.", "reference_strs": [...]}]}

The file is TextCaps_0.1_train.json, TextCaps_0.1_val.json or TextCaps_0.1_test.json, which has no captions; an image
lies at IMAGE_ID.jpg, in the folder train_images or test_images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from git_scale.data.builders.formats import CAPTIONS, AnnotationFormat
from git_scale.data.builders.json_records import (
    Id,
    MalformedRecordError,
    expecting,
    id_of,
    not_text,
    read_object,
    records_of,
)
from git_scale.data.builders.source_images import SourceRow, refuse_shared_files
from git_scale.data.builders.writer import Skipped


def read_textcaps(path: Path) -> list[SourceRow | Skipped]:
    """One row per image, in order of first mention, with its captions and its `image_id`; of a file without captions
    rows that an evaluation asks for one.

    Before them captions that are no text. Raises DataError for a file of another form.
    """
    with expecting(path, "TextCaps", "an object with data: [{image_id, caption_str}]"):
        rows, skipped = _rows(read_object(path))
    refuse_shared_files(path, rows)
    return [*skipped, *rows]


def _rows(tree: dict[str, Any]) -> tuple[list[SourceRow], list[Skipped]]:
    skipped: list[Skipped] = []
    captions: dict[Id, list[str]] = {}
    records = records_of(tree, "data")
    is_test = not any("caption_str" in record for _, record in records)
    for place, record in records:
        if "question" in record:
            raise MalformedRecordError(f"{place} has a question: TextVQA's and ST-VQA's files do")
        number = id_of(place, record, "image_id")
        of_image = captions.setdefault(number, [])
        caption = record.get("caption_str")
        if isinstance(caption, str):
            of_image.append(caption)
        elif not is_test:
            skipped.append(
                Skipped(f"{place} of {number!r:.200}", not_text("caption_str", caption), "caption")
            )
    rows = [
        SourceRow(f"{number}.jpg", tuple(texts), {"image_id": number}, is_asked=is_test)
        for number, texts in captions.items()
    ]
    return rows, skipped


FORMAT = AnnotationFormat(
    "TextCaps: TextCaps_0.1_train.json; keeps image_id",
    (CAPTIONS,),
    lambda given: read_textcaps(given["captions"]),
)
