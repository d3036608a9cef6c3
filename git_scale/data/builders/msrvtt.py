"""Rows of MSR-VTT's captions: `sentences` joined with `videos`, of one split.

    {"videos": [{"video_id": "video0", "split": "train", ...}],
     "sentences": [{"caption": "...", "video_id": "video0"}]}

The file is train_val_videodatainfo.json or test_videodatainfo.json; a video lies at VIDEO_ID.mp4.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from git_scale.data.builders.formats import CAPTIONS, AnnotationFormat, FormatOption
from git_scale.data.builders.json_records import (
    Id,
    MalformedRecordError,
    expecting,
    id_of,
    not_text,
    read_object,
    records_of,
    value_of,
)
from git_scale.data.builders.source_images import SourceRow, refuse_shared_files
from git_scale.data.builders.splits import of_split
from git_scale.data.builders.writer import Skipped
from git_scale.errors import DataError


def read_msrvtt(path: Path, split: str | None = None) -> list[SourceRow | Skipped]:
    """One row per video of the split (all of them without one), with its captions and its `image_id`.

    Before them captions of no video, or that are no text. Raises DataError for a file of another form, for a split
    that no video has, and for a video that stands twice.
    """
    with expecting(
        path,
        "MSR-VTT's captions",
        "an object with videos: [{video_id, split}] and sentences: [{video_id, caption}]",
    ):
        return _rows(path, read_object(path), split)


def _rows(path: Path, tree: dict[str, Any], split: str | None) -> list[SourceRow | Skipped]:
    skipped: list[SourceRow | Skipped] = []
    captions: dict[Id, list[str]] = {}
    splits: dict[Id, object] = {}
    for place, video in records_of(tree, "videos"):
        number = id_of(place, video, "video_id")
        if number in captions:
            raise DataError(f"{path}: video_id {number!r:.200} stands twice")
        captions[number], splits[number] = [], video.get("split")
    if not captions:
        raise MalformedRecordError("no video in it")
    wanted = of_split(path, "video", splits, split)
    for place, sentence in records_of(tree, "sentences"):
        number, caption = id_of(place, sentence, "video_id"), value_of(place, sentence, "caption")
        if number not in captions:
            skipped.append(Skipped(f"{place} of {number!r:.200}", "caption of no video", "caption"))
        elif isinstance(caption, str):
            captions[number].append(caption)
        else:
            skipped.append(Skipped(f"{place} of {number!r:.200}", not_text("caption", caption), "caption"))
    rows = [SourceRow(f"{number}.mp4", tuple(captions[number]), {"image_id": number}) for number in wanted]
    refuse_shared_files(path, rows)
    return [*skipped, *rows]


def _read(given: Mapping[str, Any]) -> list[SourceRow | Skipped]:
    return read_msrvtt(given["captions"], given["split"])


FORMAT = AnnotationFormat(
    "MSR-VTT: videos and train_val_videodatainfo.json",
    (CAPTIONS, FormatOption("split", "train, validate or test; all without it")),
    _read,
)
