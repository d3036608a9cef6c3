"""Rows of VATEX's captions: a list of videos with ten captions in English, and as many in Chinese.

    [{"videoID": "Ptf_2VRj-V0_000122_000132", "enCap": ["..."], "chCap": ["..."]}]

A video lies at VIDEOID.mp4, ten seconds cut out of what YouTube has; the private test set has no captions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from git_scale.data.builders.formats import CAPTIONS, AnnotationFormat, FormatOption
from git_scale.data.builders.json_records import expecting, id_of, not_text, read_list
from git_scale.data.builders.source_images import SourceRow, refuse_shared_files
from git_scale.data.builders.writer import Skipped
from git_scale.errors import DataError

LANGUAGES = {"en": "enCap", "ch": "chCap"}


def read_vatex(path: Path, language: str = "en") -> list[SourceRow | Skipped]:
    """One row per video, with the captions of one language and its `image_id`; before them captions that are no text.

    Raises DataError for a file of another form, and for a video that stands twice.
    """
    if language not in LANGUAGES:
        raise DataError(f"--language {language}: one of {', '.join(LANGUAGES)} is needed")
    rows: list[SourceRow] = []
    skipped: list[SourceRow | Skipped] = []
    seen = set()
    with expecting(path, "VATEX's captions", "a list of {videoID, enCap, chCap}"):
        videos = read_list(path, "videos")
        for place, video in videos:
            number = id_of(place, video, "videoID")
            if number in seen:
                raise DataError(f"{path}: videoID {number!r:.200} stands twice")
            seen.add(number)
            said = video.get(LANGUAGES[language], [])
            said = said if isinstance(said, list) else [said]
            skipped += [
                Skipped(f"{place} of {number!r:.200}", not_text(LANGUAGES[language], caption), "caption")
                for caption in said
                if not isinstance(caption, str)
            ]
            captions = tuple(caption for caption in said if isinstance(caption, str))
            rows.append(SourceRow(f"{number}.mp4", captions, {"image_id": number}))
    refuse_shared_files(path, rows)
    is_test = not any(key in video for _, video in videos for key in LANGUAGES.values())
    return [*skipped, *(replace(row, is_asked=is_test) for row in rows)]


def _read(given: Mapping[str, Any]) -> list[SourceRow | Skipped]:
    return read_vatex(given["captions"], given["language"] or "en")


FORMAT = AnnotationFormat(
    "VATEX: videos and vatex_training_v1.0.json",
    (CAPTIONS, FormatOption("language", "en (the default) or ch")),
    _read,
)
