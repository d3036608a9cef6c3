"""Rows of a COCO captions file (captions_train2017.json and its like): `images` joined with `annotations`."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any

from git_scale.data.builders.formats import CAPTIONS, AnnotationFormat
from git_scale.data.builders.json_records import (
    Id,
    MalformedRecordError,
    id_of,
    not_text,
    read_object,
    records_of,
    value_of,
)
from git_scale.data.builders.source_images import SourceRow, refuse_shared_files
from git_scale.data.builders.writer import Skipped
from git_scale.errors import DataError


def read_coco(path: Path) -> list[SourceRow | Skipped]:
    """One row per image in the file's order, each with its `image_id`, which evaluation servers ask for.

    Before them what cannot be used: captions that are no text or belong to no image, images without a name.
    Raises DataError when the file is not of that form, or when two images have one id or one file.
    """
    try:
        rows, skipped = _join(path, read_object(path))
    except MalformedRecordError as error:
        raise DataError(
            f"{path}: not COCO captions ({error}); expected an object with images: [{{id, file_name}}]"
            " and annotations: [{image_id, caption}]"
        ) from None
    refuse_shared_files(path, rows)
    return [*skipped, *rows]


def _join(path: Path, tree: dict[str, Any]) -> tuple[list[SourceRow], list[Skipped]]:
    skipped: list[Skipped] = []
    files, captions_of = dict[Id, str](), dict[Id, list[str]]()
    for place, image in records_of(tree, "images"):
        number, file = id_of(place, image, "id"), value_of(place, image, "file_name")
        if number in captions_of:
            raise DataError(
                f"{path}: image id {number!r} stands twice, for {files.get(number)!r} and {file!r}; give each"
                " image an id of its own"
            )
        captions_of[number] = []
        if isinstance(file, str):
            files[number] = file
        else:
            skipped.append(Skipped(f"image id {number!r}", not_text("file_name", file)))
    for place, annotation in records_of(tree, "annotations"):
        number, caption = id_of(place, annotation, "image_id"), value_of(place, annotation, "caption")
        if number not in captions_of:
            reason = f"annotation of no image{hint_at_other_kind(number, captions_of)}"
            skipped.append(Skipped(f"{place} of image id {number!r}", reason, "caption"))
        elif not isinstance(caption, str):
            skipped.append(
                Skipped(f"{place} of image id {number!r}", not_text("caption", caption), "caption")
            )
        else:
            captions_of[number].append(caption)
    rows = [
        SourceRow(file, tuple(captions_of[number]), {"image_id": number}) for number, file in files.items()
    ]
    return rows, skipped


def hint_at_other_kind(number: Id, known: Container[Id]) -> str:
    """What to say when an id is known as a text instead of a number, or the other way round."""
    if isinstance(number, int):
        return ", the id there is a text" if str(number) in known else ""
    return ", the id there is a number" if number.isdecimal() and int(number) in known else ""


FORMAT = AnnotationFormat(
    "COCO captions JSON; keeps image_id", (CAPTIONS,), lambda given: read_coco(given["captions"])
)
