"""Rows of a COCO captions file (captions_train2017.json and its like): `images` joined with `annotations`.

nocaps and VizWiz-Captions have the same form. A file without annotations is a test split's: an evaluation asks for
the captions of its images. nocaps says of each image how near it is to COCO's (`domain`), which is kept;
VizWiz-Captions marks captions of no use (`is_precanned`, `is_rejected`), which its own evaluation leaves out.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any

from git_scale.data.builders.formats import CAPTIONS, AnnotationFormat
from git_scale.data.builders.json_records import (
    Id,
    expecting,
    id_of,
    is_true,
    not_text,
    read_object,
    records_of,
    value_of,
)
from git_scale.data.builders.source_images import SourceRow, refuse_shared_files
from git_scale.data.builders.writer import Skipped
from git_scale.errors import DataError
from git_scale.text_files import whole_number

OF_NO_USE = {"is_precanned": "precanned caption", "is_rejected": "rejected caption"}


def read_coco(path: Path) -> list[SourceRow | Skipped]:
    """One row per image in the file's order, each with its `image_id`, which evaluation servers ask for.

    Before them what cannot be used: captions that are no text, belong to no image or are marked as of no use, images
    without a name.
    Raises DataError when the file is not of that form, or when two images have one id or one file.
    """
    with expecting(
        path,
        "COCO captions",
        "an object with images: [{id, file_name}] and annotations: [{image_id, caption}]",
    ):
        rows, skipped = _join(path, read_object(path))
    refuse_shared_files(path, rows)
    return [*skipped, *rows]


def _join(path: Path, tree: dict[str, Any]) -> tuple[list[SourceRow], list[Skipped]]:
    skipped: list[Skipped] = []
    files, captions_of, kept = dict[Id, str](), dict[Id, list[str]](), dict[Id, dict[str, Any]]()
    for place, image in records_of(tree, "images"):
        number, file = id_of(place, image, "id"), value_of(place, image, "file_name")
        if number in captions_of:
            raise DataError(
                f"{path}: image id {number!r:.200} stands twice, for {files.get(number)!r:.200} and"
                f" {file!r:.200}; give each image an id of its own"
            )
        captions_of[number] = []
        kept[number] = {"image_id": number} | {key: image[key] for key in ("domain",) if key in image}
        if isinstance(file, str):
            files[number] = file
        else:
            skipped.append(Skipped(f"image id {number!r:.200}", not_text("file_name", file)))
    is_test = bool(captions_of) and "annotations" not in tree
    annotations = [] if is_test else records_of(tree, "annotations")
    for place, annotation in annotations:
        number, caption = id_of(place, annotation, "image_id"), value_of(place, annotation, "caption")
        if number not in captions_of:
            reason = f"annotation of no image{hint_at_other_kind(number, captions_of)}"
            skipped.append(Skipped(f"{place} of image id {number!r:.200}", reason, "caption"))
        elif not isinstance(caption, str):
            reason = not_text("caption", caption)
            skipped.append(Skipped(f"{place} of image id {number!r:.200}", reason, "caption"))
        elif mark := next((mark for mark in OF_NO_USE if is_true(place, annotation, mark)), None):
            skipped.append(Skipped(f"{place} of image id {number!r:.200}", OF_NO_USE[mark], "caption"))
        else:
            captions_of[number].append(caption)
    rows = [
        SourceRow(file, tuple(captions_of[number]), kept[number], is_asked=not annotations)
        for number, file in files.items()
    ]
    return rows, skipped


def hint_at_other_kind(number: Id, known: Container[Id]) -> str:
    """What to say when an id is known as a text instead of a number, or the other way round."""
    if isinstance(number, int):
        return ", the id there is a text" if str(number) in known else ""
    return ", the id there is a number" if whole_number(number) in known else ""


FORMAT = AnnotationFormat(
    "COCO captions JSON, also nocaps and VizWiz-Captions; keeps image_id",
    (CAPTIONS,),
    lambda given: read_coco(given["captions"]),
)
