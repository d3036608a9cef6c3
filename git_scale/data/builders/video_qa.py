"""Rows of MSRVTT-QA and MSVD-QA: questions about videos, made of their captions.

    [{"answer": "couch", "category_id": 14, "id": 0, "question": "what are people sitting on?", "video_id": 6513}]

The file is train_qa.json, val_qa.json or test_qa.json. MSRVTT-QA's video 6513 lies at video6513.mp4. MSVD-QA's 1
is called as in youtube_mapping.txt, which has a line "-4wsuPCjDBc_5_15 vid1", and lies at -4wsuPCjDBc_5_15.avi.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from git_scale.data.builders.formats import QUESTIONS, AnnotationFormat, FormatOption
from git_scale.data.builders.json_records import Id, expecting, id_of, read_list
from git_scale.data.builders.questions import QuestionList
from git_scale.data.builders.source_images import SourceRow
from git_scale.data.builders.writer import Skipped
from git_scale.errors import DataError
from git_scale.text_files import read_text


def read_video_qa(path: Path, mapping: Path | None = None) -> list[SourceRow | Skipped]:
    """One row per video, in order of first mention, with its questions; its number is the `image_id`.

    Before them what cannot be used. `mapping`: youtube_mapping.txt, for MSVD-QA. Raises DataError for a file of
    another form, for an id that stands twice and for a video that the mapping lacks.
    """
    asked = QuestionList(path)
    names = _read_mapping(mapping) if mapping else {}
    with expecting(path, "MSRVTT-QA or MSVD-QA", "a list of {id, video_id, question, answer}"):
        for place, record in read_list(path, "questions"):
            number, video = id_of(place, record, "id"), id_of(place, record, "video_id")
            asked.take_id(place, number, record.get("question"))
            answers = asked.texts([record["answer"]], number) if "answer" in record else None
            asked.ask(record, number, video, answers)

    def file_of(video: Id) -> str:
        if mapping is None:
            return f"video{video}.mp4"
        if f"vid{video}" not in names:
            raise DataError(f"{mapping}: no line NAME vid{video}, a video of {path}; is it of MSVD-QA?")
        return f"{names[f'vid{video}']}.avi"

    return asked.rows(file_of)


def _read_mapping(path: Path) -> dict[str, str]:
    """vid1 -> the name of its file. Raises DataError where it has two."""
    try:
        lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable mapping: {error}") from None
    if wrong := next((line for line in lines if len(line) != 2), None):
        raise DataError(f"{path}: lines NAME vidN are expected, found {' '.join(wrong)[:60]!r}")
    names: dict[str, str] = {}
    for name, number in lines:
        if (other := names.setdefault(number, name)) != name:
            raise DataError(
                f"{path}: {number} is both {other!r:.200} and {name!r:.200}; remove one of the two lines"
            )
    return names


def _read(given: Mapping[str, Any]) -> list[SourceRow | Skipped]:
    return read_video_qa(given["questions"], given["mapping"])


FORMAT = AnnotationFormat(
    "MSRVTT-QA and MSVD-QA: train_qa.json",
    (QUESTIONS, FormatOption("mapping", "MSVD-QA's youtube_mapping.txt", is_file=True)),
    _read,
)
