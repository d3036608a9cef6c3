"""COCO captions files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from git_scale.data.builders.coco import read_coco
from git_scale.data.builders.source_images import SourceRow
from git_scale.data.builders.writer import Skipped
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
        Skipped("annotations[3] of image id 77", "annotation of no image", "caption"),
        SourceRow("b.jpg", ("two",), {"image_id": 9}),
        SourceRow("a.jpg", ("one", "three"), {"image_id": 4}),
        SourceRow("c.jpg", (), {"image_id": 5}),
    ]


@pytest.mark.parametrize(
    "tree",
    [
        [],
        {},
        {"images": []},
        {"images": [{"id": 1}], "annotations": []},
        {"images": [{"id": [], "file_name": "a"}], "annotations": []},
        {"images": [{"id": None, "file_name": "a"}], "annotations": []},
        {"images": [{"id": 1.0, "file_name": "a"}], "annotations": []},
        {"images": [{"id": "\ud83d", "file_name": "a"}], "annotations": []},
        {"images": [{"id": True, "file_name": "a"}], "annotations": []},
        {"images": ["a.jpg"], "annotations": []},
        {"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": None, "caption": "x"}]},
        {"images": [{"id": 1, "file_name": "a"}], "annotations": {"image_id": 1, "caption": "x"}},
        {"images": [], "annotations": [{"image_id": 1}]},
        {"images": 3, "annotations": []},
    ],
)
def test_another_form_is_refused(tmp_path: Path, tree: Any) -> None:
    with pytest.raises(DataError, match=r"not COCO captions .* expected an object with images"):
        read_coco(captions_file(tmp_path, tree))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "null"),
        (["A dog"], "a list"),
        ({"raw": "A dog"}, "an object"),
        (7, "a number"),
        (True, "true or false"),
    ],
)
def test_what_is_no_text_is_skipped_with_its_place(tmp_path: Path, value: Any, kind: str) -> None:
    """It was written out as Python spells it: an image's caption was "None"."""
    tree = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": value}],
        "annotations": [
            {"image_id": 1, "caption": "A dog"},
            {"image_id": 1, "caption": value},
            {"image_id": 2, "caption": "a caption of the nameless image"},
        ],
    }
    assert read_coco(captions_file(tmp_path, tree)) == [
        Skipped("image id 2", f"file_name is not text ({kind})"),
        Skipped("annotations[1] of image id 1", f"caption is not text ({kind})", "caption"),
        SourceRow("a.jpg", ("A dog",), {"image_id": 1}),
    ]


def test_ids_as_texts_in_one_list_and_numbers_in_the_other_are_pointed_out(tmp_path: Path) -> None:
    tree = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": "2", "file_name": "b.jpg"}],
        "annotations": [{"image_id": id, "caption": "x"} for id in ("1", 2, "1" * 5000)],
    }
    skipped = [item.reason for item in read_coco(captions_file(tmp_path, tree)) if isinstance(item, Skipped)]
    assert skipped == [
        "annotation of no image, the id there is a number",
        "annotation of no image, the id there is a text",
        "annotation of no image",
    ]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            [{"id": 9, "file_name": "a.jpg"}, {"id": 9, "file_name": "b.jpg"}],
            r"captions\.json: image id 9 stands twice, for 'a\.jpg' and 'b\.jpg'",
        ),
        (
            [{"id": 9, "file_name": "a.jpg"}, {"id": 8, "file_name": "a.jpg"}],
            r"the image ids 9 and 8 have one file, 'a\.jpg'",
        ),
        (
            [{"id": 9, "file_name": "a.jpg"}, {"id": 8, "file_name": "./x/../a.jpg"}],
            r"the image ids 9 and 8 have one file",
        ),
    ],
)
def test_two_images_under_one_key_are_refused(tmp_path: Path, images: list[Any], message: str) -> None:
    tree = {"images": images, "annotations": [{"image_id": 9, "caption": "whose?"}]}
    with pytest.raises(DataError, match=message):
        read_coco(captions_file(tmp_path, tree))


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text('{"images": [{"id": 1, "file_name": "a", "file_name": "b"}], "annotations": []}')
    with pytest.raises(DataError, match=r"captions\.json: .*the key 'file_name' stands twice"):
        read_coco(path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000])
def test_broken_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "captions.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"captions\.json: not a readable JSON file"):
        read_coco(path)
