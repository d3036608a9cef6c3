"""Rows of TGIF-QA's Frame questions: a table of GIFs, questions and answers, separated by tabs.

    gif_name<TAB>question<TAB>answer<TAB>type<TAB>vid_id<TAB>key<TAB>description
    tumblr_no73q2fm0I1uuf348o1_250<TAB>what is being placed in the cone ?<TAB>cookie<TAB>0<TAB>FRAMEQA1159<TAB>...

The file is Train_frameqa_question.csv or Test_frameqa_question.csv; a GIF lies at GIF_NAME.gif. Frames of it, not the
GIF, go into the shards. A question's id is its line. No part is held out as it is published: every tenth GIF of the
training file, in order of first mention, is --split heldout, and the others are --split train.
"""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

from git_scale.data.builders.formats import HELD_OUT, QUESTIONS, AnnotationFormat
from git_scale.data.builders.questions import QuestionList
from git_scale.data.builders.segments import WHOLE
from git_scale.data.builders.source_images import SourceRow
from git_scale.data.builders.splits import tenth_held_out
from git_scale.data.builders.tables import parse_rows
from git_scale.data.builders.writer import Skipped
from git_scale.errors import DataError
from git_scale.text_files import read_text

COLUMNS = ("gif_name", "question", "answer")


def read_tgif_qa(path: Path, split: str | None = None) -> list[SourceRow | Skipped]:
    """One row per GIF of train or heldout (all without a split), with its questions; its name is the `image_id`.

    Before them what cannot be used. Raises DataError for a file of another form, such as the other three kinds of
    questions (action, transition and count), and for a line without all cells.
    """
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable table: {error}") from None
    table = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    lines = parse_rows(path, table)
    header = lines[0][1] if lines else []
    if not {*COLUMNS, "type"} <= set(header):
        raise DataError(
            f"{path}: not TGIF-QA's Frame questions; expected columns gif_name, question, answer and type, separated"
            f" by tabs, found {header[:8]}"
        )
    asked = QuestionList(path)
    for number, cells in lines[1:]:
        if not any(cells):
            continue
        if len(cells) != len(header):
            raise DataError(f"{path}, line {number}: {len(cells)} cells, but the header has {len(header)}")
        name, question, answer = (cells[header.index(column)].strip() for column in COLUMNS)
        asked.ask({"question": question}, number, name, asked.texts([answer], number))
    rows = tenth_held_out(path, asked.rows(lambda name: f"{name}.gif"), split)
    return [replace(row, segment=WHOLE) if isinstance(row, SourceRow) else row for row in rows]


FORMAT = AnnotationFormat(
    "TGIF-QA's Frame questions: Train_frameqa_question.csv",
    (QUESTIONS, HELD_OUT),
    lambda given: read_tgif_qa(given["questions"], given["split"]),
)
