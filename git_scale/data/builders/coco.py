"""Rows of a COCO captions file (captions_train2017.json and its like): `images` joined with `annotations`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from git_scale.data.builders.pictures import Row
from git_scale.errors import DataError


def read_coco(path: Path) -> list[Row]:
    """One row per picture in the file's order, each with its `image_id`, which evaluation servers ask for.

    Raises DataError when the file is not of that form.
    """
    try:
        return _join(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a readable JSON file: {error}") from None
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not COCO captions ({type(error).__name__}: {error}); expected an object with images:"
            " [{id, file_name}] and annotations: [{image_id, caption}]"
        ) from None


def _join(tree: dict[str, Any]) -> list[Row]:
    captions_of: dict[Any, list[str]] = {image["id"]: [] for image in tree["images"]}
    for annotation in tree["annotations"]:
        captions_of.setdefault(annotation["image_id"], []).append(str(annotation["caption"]))
    return [
        Row(str(image["file_name"]), tuple(captions_of[image["id"]]), {"image_id": image["id"]})
        for image in tree["images"]
    ]
