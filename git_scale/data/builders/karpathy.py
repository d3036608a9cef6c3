"""Rows of Karpathy's splits of COCO, Flickr8k and Flickr30k: images with their captions and their part.

    {"images": [{"filepath": "val2014", "filename": "COCO_val2014_000000391895.jpg", "cocoid": 391895,
                 "split": "restval", "sentences": [{"raw": "A man on a motorcycle."}]}], "dataset": "coco"}

The file is dataset_coco.json, dataset_flickr8k.json or dataset_flickr30k.json. Flickr's have neither filepath nor
cocoid: their images have the `imgid` of the file.
"""

from __future__ import annotations

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


def read_karpathy(path: Path, split: str | None = None) -> list[SourceRow | Skipped]:
    """One row per image of the parts ("train,restval"; all without them), with its captions and its `image_id`.

    Before them captions and names that are no text. Raises DataError for a file of another form, for a part that no
    image has, and for images that share an id or a file.
    """
    with expecting(
        path,
        "Karpathy's splits",
        "an object with images: [{filename, split, sentences: [{raw}]}]",
    ):
        return _rows(path, read_object(path), split)


def _rows(path: Path, tree: dict[str, Any], split: str | None) -> list[SourceRow | Skipped]:
    images: dict[Id, tuple[str, dict[str, Any]]] = {}
    splits: dict[Id, object] = {}
    for place, image in records_of(tree, "images"):
        number = id_of(place, image, "cocoid" if "cocoid" in image else "imgid")
        if number in images:
            raise DataError(
                f"{path}: image id {number!r:.200} stands twice, the second time at {place}; remove one"
            )
        images[number], splits[number] = (place, image), value_of(place, image, "split")
    if not images:
        raise MalformedRecordError("no image in it")
    rows: list[SourceRow] = []
    skipped: list[Skipped] = []
    for number in of_split(path, "image", splits, split):
        place, image = images[number]
        captions = _captions(place, image, skipped)
        folder, file = image.get("filepath", ""), value_of(place, image, "filename")
        if isinstance(file, str) and isinstance(folder, str):
            name = f"{folder}/{file}" if folder else file
            rows.append(SourceRow(name, captions, {"image_id": number}))
        else:
            skipped.append(Skipped(f"image id {number!r:.200}", "filename or filepath is not text"))
    refuse_shared_files(path, rows)
    return [*skipped, *rows]


def _captions(place: str, image: dict[str, Any], skipped: list[Skipped]) -> tuple[str, ...]:
    captions: list[str] = []
    for where, sentence in records_of(image, "sentences", place):
        if isinstance(raw := value_of(where, sentence, "raw"), str):
            captions.append(raw)
        else:
            skipped.append(Skipped(where, not_text("raw", raw), "caption"))
    return tuple(captions)


FORMAT = AnnotationFormat(
    "Karpathy's splits of COCO, Flickr8k and Flickr30k: dataset_coco.json",
    (CAPTIONS, FormatOption("split", "train,restval or val or test; all without it")),
    lambda given: read_karpathy(given["captions"], given["split"]),
)
