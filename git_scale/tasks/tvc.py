"""The file of TVC's server: a caption of each clip, which is a part of a scene of a television series.

    {"vid_name": "friends_s01e03_seg02_clip_19", "clip_id": 86603, "ts": [16.48, 33.87], "descs": [{"desc": "..."}]}

`vid_name` and `ts`, the part's begin and end in seconds, are those of the sample's json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from git_scale.tasks.submissions import Asked, Row, Submission, refuse_mark, shown
from git_scale.text_files import read_json_lines


def _write(answers: Iterable[tuple[Asked, str]]) -> str:
    return "".join(
        json.dumps(
            {**_moment(item.sample), "clip_id": item.id, "descs": [{"desc": text}]}, ensure_ascii=False
        )
        + "\n"
        for item, text in answers
    )


def _moment(said: Mapping[str, Any]) -> dict[str, Any]:
    """Which part of which video a clip is."""
    return {name: said.get(name) for name in ("vid_name", "ts")}


def _flaw_of_sample(sample: Mapping[str, Any]) -> str:
    if isinstance(sample.get("vid_name"), str) and _is_span(sample.get("ts")):
        return ""
    name, times = map(shown, _moment(sample).values())
    return (
        f"its vid_name is {name} and its ts {times}, and TVC's server wants a name and [begin, end] in seconds: build"
        " the shards with tools/prepare_data.py tvc"
    )


def _is_span(times: object) -> bool:
    if (
        not isinstance(times, list)
        or len(times) != 2
        or any(type(second) not in (int, float) for second in times)
    ):
        return False
    return bool(0 <= times[0] <= times[1] < math.inf)


def _read(path: Path) -> Iterator[Row]:
    lines = list(read_json_lines(path))  # which says what is no file
    refuse_mark(path)
    for number, row in lines:
        place = f"line {number}"
        descs = row.get("descs") if isinstance(row, dict) else None
        if not isinstance(descs, list) or not row.keys() >= {"vid_name", "clip_id", "ts"}:
            raise ValueError(f"{place}: {{vid_name, clip_id, ts, descs: [{{desc}}]}} is wanted")
        if not isinstance(row["vid_name"], str) or not _is_span(row["ts"]):
            raise ValueError(f"{place}: vid_name is to be a text and ts [begin, end]")
        first = descs[0] if len(descs) == 1 else None
        yield Row(place, row["clip_id"], first.get("desc") if isinstance(first, dict) else None, _moment(row))


TVC = Submission(
    "caption",
    lambda record: [record.meta.get("clip_id", record.meta.get("image_id"))],
    "clip_id",
    (int,),
    "tvc_{data}_submission.jsonl",
    write=_write,
    read=_read,
    flaw_of_sample=_flaw_of_sample,
)
