"""Rows of YouCook2: the steps of recipes, each a segment of a video.

    {"database": {"GLd3aX16zBg": {"subset": "training", "recipe_type": "113", "annotations":
        [{"segment": [90, 102], "id": 0, "sentence": "spread margarine on two slices of white bread"}]}}}

The file is youcookii_annotations_trainval.json; a video lies at ID.mp4, or at SUBSET/RECIPE_TYPE/ID.mp4 as the
authors' program downloads it. The frames of the segment are decoded out of the whole video and go into the shards.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from git_scale.data.builders.formats import CAPTIONS, AnnotationFormat, FormatOption
from git_scale.data.builders.json_records import (
    MalformedRecordError,
    expecting,
    id_of,
    kind_of,
    not_text,
    object_of,
    read_object,
    records_of,
    segment_of,
    value_of,
)
from git_scale.data.builders.source_images import SourceRow, refuse_shared_files
from git_scale.data.builders.splits import of_split
from git_scale.data.builders.writer import Skipped

ENDINGS = (".mp4", ".mkv", ".webm")  # what a download gives, in the order in which they are looked for


def read_youcook2(path: Path, videos: Path, subset: str | None = None) -> list[SourceRow | Skipped]:
    """One row per step of the videos of a subset (all without one); `image_id` is the video's and the step's, "ID_0".

    Before them sentences that are no text. Videos that are no longer to be had are counted by who reads them. Raises
    DataError for a file of another form and for a subset that no video has.
    """
    skipped: list[Skipped] = []
    rows: list[SourceRow] = []
    taken: set[str] = set()
    with expecting(
        path,
        "YouCook2",
        "an object with database: {ID: {subset, annotations: [{id, segment: [start, end], sentence}]}}",
    ):
        database = object_of(read_object(path), "database")
        subsets = {key: _subset_of(key, video) for key, video in database.items()}
        for key in of_split(path, "video", subsets, subset):
            rows += _steps(key, database[key], _file_of(videos, key, database[key]), skipped, taken)
    refuse_shared_files(path, {row.file: row for row in rows}.values())  # of a video each, not of its steps
    return [*skipped, *rows]


def _subset_of(key: str, video: object) -> object:
    if not isinstance(video, dict):
        raise MalformedRecordError(f"database.{key:.200} is {kind_of(video)}, not an object")
    return value_of(f"database.{key:.200}", video, "subset")


def _file_of(videos: Path, key: str, video: dict[str, Any]) -> str:
    folder = f"{video['subset']}/{video.get('recipe_type', '')}"
    names = [f"{place}{key}{ending}" for place in ("", f"{folder}/") for ending in ENDINGS]
    there = (name for name in names if os.path.isfile(videos / name))  # noqa: PTH113 - Path's fails for a long name
    return next(there, names[0])


def _steps(
    key: str, video: dict[str, Any], file: str, skipped: list[Skipped], taken: set[str]
) -> list[SourceRow]:
    rows = []
    for place, step in records_of(video, "annotations", key):
        number, sentence = f"{key}_{id_of(place, step, 'id')}", value_of(place, step, "sentence")
        if number in taken:
            raise MalformedRecordError(f"{place} has the id of another step, {number!r:.200}")
        taken.add(number)
        segment = segment_of(place, step, "segment")
        if isinstance(sentence, str):
            identity = {"image_id": number, "segment": list(segment)}
            rows.append(SourceRow(file, (sentence,), identity, segment=segment))
        else:
            skipped.append(Skipped(place, not_text("sentence", sentence), "caption"))
    return rows


def _read(given: Mapping[str, Any]) -> list[SourceRow | Skipped]:
    return read_youcook2(given["captions"], given["source"], given["split"])


FORMAT = AnnotationFormat(
    "YouCook2: whole videos and youcookii_annotations_trainval.json",
    (CAPTIONS, FormatOption("split", "training or validation; both without it")),
    _read,
)
