"""Rows of MSVD: lines of a video's name and a caption.

    # a comment
    -4wsuPCjDBc_5_15 a squirrel is eating a peanut in it's shell

The file is AllVideoDescriptions.txt; a video lies at NAME.avi in YouTubeClips. The split that everybody uses is by
the place of a name among the 1,970 in order, that of youtube_mapping.txt: 1,200, 100 and 670 of them.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from git_scale.data.builders.formats import CAPTIONS, AnnotationFormat, FormatOption
from git_scale.data.builders.source_images import SourceRow, refuse_shared_files
from git_scale.data.builders.splits import of_split
from git_scale.data.builders.writer import Skipped
from git_scale.errors import DataError
from git_scale.text_files import read_text

PARTS = {"train": 1200, "val": 100, "test": 670}
VIDEOS = sum(PARTS.values())


def read_msvd(path: Path, split: str | None = None) -> list[SourceRow | Skipped]:
    """One row per video of the parts (all without them), in the order of the names, with its captions and `image_id`.

    Raises DataError for a file of another form, and for a split where there are not the 1,970 videos that it is of.
    """
    captions: dict[str, list[str]] = {}
    # all three line ends; splitlines would cut captions at U+2028 as well
    for number, line in enumerate(io.StringIO(_text(path), newline=None), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, blank, caption = line.strip().partition(" ")
        if not blank or name.count("_") < 2 or not all(part.isdecimal() for part in name.split("_")[-2:]):
            raise DataError(
                f"{path}, line {number}: not MSVD's captions; expected VIDEO_START_END and a caption, found"
                f" {line[:60]!r}"
            )
        captions.setdefault(name, []).append(caption)
    names = sorted(captions)
    if split and len(names) != VIDEOS:
        raise DataError(
            f"{path}: --split is by place among {VIDEOS:,} videos, but there are {len(names):,}; leave it out"
        )
    parts = [part for part, size in PARTS.items() for _ in range(size)] if split else [""] * len(names)
    wanted = of_split(path, "video", dict(zip(names, parts, strict=True)), split)
    rows = [SourceRow(f"{name}.avi", tuple(captions[name]), {"image_id": name}) for name in wanted]
    refuse_shared_files(path, rows)
    return [*rows]


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable file of captions: {error}") from None


def _read(given: Mapping[str, Any]) -> list[SourceRow | Skipped]:
    return read_msvd(given["captions"], given["split"])


FORMAT = AnnotationFormat(
    "MSVD: AllVideoDescriptions.txt; keeps the name as image_id",
    (CAPTIONS, FormatOption("split", "train, val or test; all without it")),
    _read,
)
