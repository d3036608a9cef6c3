"""Rows of TVC: captions of moments in scenes of television series.

    {"vid_name": "friends_s01e03_seg02_clip_19", "clip_id": 86603, "ts": [16.48, 33.87], "descs": [{"desc": "..."}]}

The file is tvc_train_release.jsonl, tvc_val_release.jsonl or tvc_test_public_release.jsonl, which has no descs. The
videos are published as TVQA's frames, three a second: friends_frames/friends_s01e03_seg02_clip_19/00001.jpg, ...
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from git_scale.data.builders.formats import CAPTIONS, AnnotationFormat
from git_scale.data.builders.json_records import (
    Id,
    MalformedRecordError,
    expecting,
    id_of,
    kind_of,
    not_text,
    records_of,
    segment_of,
    value_of,
)
from git_scale.data.builders.source_images import SourceRow
from git_scale.data.builders.writer import Skipped
from git_scale.errors import DataError
from git_scale.text_files import read_json_lines

SHOWS = ("friends", "met", "castle", "house", "grey")
OTHER_SHOW = "bbt"  # whose names begin with the season


def read_tvc(path: Path) -> list[SourceRow | Skipped]:
    """One row per moment, with its captions, `image_id` (the clip_id), `vid_name` and `ts`, which the server takes.

    Before them captions that are no text; the moments of a file without captions are asked for them. Raises DataError
    for a file of another form and for a clip_id that stands twice.
    """
    skipped: list[Skipped] = []
    rows: dict[Id, SourceRow] = {}
    with expecting(path, "TVC", "lines of {vid_name, clip_id, ts: [start, end], descs: [{desc}]}"):
        records = list(_records(path))
        is_test = not any("descs" in record for _, record in records)
        for place, record in records:
            number = id_of(place, record, "clip_id")
            if number in rows:
                raise DataError(f"{path}: clip_id {number!r:.200} stands twice, again at {place}; remove one")
            rows[number] = _row(place, record, number, skipped, is_test)
    return [*skipped, *rows.values()]


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of all lines that are not blank, each with its place, "line 3"."""
    try:
        lines = list(read_json_lines(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable lines of JSON: {error}") from None
    for number, record in lines:
        if not isinstance(record, dict):
            raise MalformedRecordError(f"line {number} is {kind_of(record)}, not an object")
        yield f"line {number}", record


def _row(place: str, record: dict[str, Any], number: Id, skipped: list[Skipped], is_test: bool) -> SourceRow:
    if not isinstance(name := value_of(place, record, "vid_name"), str):
        raise MalformedRecordError(f"{place}.vid_name is not a text")
    captions: list[str] = []
    for where, said in records_of(record, "descs", place) if not is_test else []:
        if isinstance(caption := value_of(where, said, "desc"), str):
            captions.append(caption)
        else:
            skipped.append(Skipped(where, not_text("desc", caption), "caption"))
    segment = segment_of(place, record, "ts")
    show = name.partition("_")[0]
    folder = f"{show if show in SHOWS else OTHER_SHOW}_frames/{name}"
    kept = {"image_id": number, "vid_name": name, "ts": list(segment)}
    return SourceRow(folder, tuple(captions), kept, is_asked=is_test, segment=segment)


FORMAT = AnnotationFormat(
    "TVC: TVQA's folders of frames and tvc_train_release.jsonl; keeps clip_id as image_id",
    (CAPTIONS,),
    lambda given: read_tvc(given["captions"]),
)
