"""COCO captions files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from git_scale.data.builders.coco import read_coco
from git_scale.data.builders.pictures import Row
from git_scale.errors import DataError


def captions_file(tmp_path: Path, tree: Any) -> Path:
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(tree))
    return path


def test_annotations_are_joined_to_their_images(tmp_path: Path) -> None:
    tree = {
        "images": [
            {"id": 9, "file_name": "b.jpg"},
            {"id": 4, "file_name": "a.jpg"},
            {"id": 5, "file_name": "c.jpg"},
        ],
        "annotations": [
            {"id": 1, "image_id": 4, "caption": "one"},
            {"id": 2, "image_id": 9, "caption": "two"},
            {"id": 3, "image_id": 4, "caption": "three"},
            {"id": 4, "image_id": 77, "caption": "of no image"},
        ],
    }
    assert read_coco(captions_file(tmp_path, tree)) == [
        Row("b.jpg", ("two",), {"image_id": 9}),
        Row("a.jpg", ("one", "three"), {"image_id": 4}),
        Row("c.jpg", (), {"image_id": 5}),
    ]


@pytest.mark.parametrize(
    "tree",
    [
        [],
        {},
        {"images": []},
        {"images": [{"id": 1}], "annotations": []},
        {"images": [{"id": [], "file_name": "a"}], "annotations": []},
        {"images": [], "annotations": [{"image_id": 1}]},
        {"images": 3, "annotations": []},
    ],
)
def test_another_form_is_refused(tmp_path: Path, tree: Any) -> None:
    with pytest.raises(DataError, match=r"not COCO captions .* expected an object with images"):
        read_coco(captions_file(tmp_path, tree))


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000])
def test_broken_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "captions.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"captions\.json: not a readable JSON file"):
        read_coco(path)
