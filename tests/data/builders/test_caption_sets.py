"""Captions of nocaps, VizWiz-Captions, TextCaps and Karpathy's splits, as they are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from git_scale.config import RunConfig
from git_scale.data.builders.coco import read_coco
from git_scale.data.builders.karpathy import read_karpathy
from git_scale.data.builders.source_images import SourceRow, samples_of
from git_scale.data.builders.textcaps import read_textcaps
from git_scale.data.builders.writer import Skipped, write_shards
from git_scale.data.store import open_store
from git_scale.data.tokenizer import load_tokenizer
from git_scale.errors import DataError
from git_scale.tasks import build_task


def written(tmp_path: Path, tree: Any) -> Path:
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(tree))
    return path


def nocaps_image(number: int, name: str, domain: str) -> dict[str, Any]:
    return {
        "id": number,
        "open_images_id": name,
        "height": 24,
        "width": 32,
        "license": 0,
        "coco_url": f"https://a/{name}.jpg",
        "file_name": f"{name}.jpg",
        "domain": domain,
        "date_captured": "2018-11-06 11:04:33",
    }


NOCAPS = {
    "licenses": [],
    "info": {"version": "0.1", "year": 2018},
    "images": [nocaps_image(0, "0013ea2087020901", "in-domain"), nocaps_image(7, "00a1", "out-domain")],
    "annotations": [
        {"image_id": 0, "id": 0, "caption": "A baby is standing in front of a house."},
        {"image_id": 7, "id": 1, "caption": "A lynx."},
        {"image_id": 0, "id": 2, "caption": "A little girl."},
    ],
}


def test_nocaps_keeps_the_domain_of_each_image(tmp_path: Path) -> None:
    captions = ("A baby is standing in front of a house.", "A little girl.")
    assert read_coco(written(tmp_path, NOCAPS)) == [
        SourceRow("0013ea2087020901.jpg", captions, {"image_id": 0, "domain": "in-domain"}),
        SourceRow("00a1.jpg", ("A lynx.",), {"image_id": 7, "domain": "out-domain"}),
    ]


@pytest.mark.parametrize("annotations", [{}, {"annotations": []}], ids=["absent", "empty"])
def test_a_test_split_is_asked_for_captions(tmp_path: Path, squares: Path, annotations: Any) -> None:
    """nocaps publishes its images alone; an evaluation answers for each by its image_id."""
    Image.new("RGB", (32, 24), "red").save(tmp_path / "0013ea2087020901.jpg")
    rows = read_coco(written(tmp_path, {"info": {}, "images": NOCAPS["images"]} | annotations))
    report = write_shards(samples_of(rows, tmp_path), tmp_path / "shards")
    assert (report.samples, report.captions) == (1, 0)
    assert report.skipped == {("image", "missing image"): 1}
    raw = open_store(tmp_path / "shards").read(0)
    assert raw.text.meta["domain"] == "in-domain" and raw.text.captions == []
    task = build_task("caption", RunConfig(), load_tokenizer(squares / "tokenizer.model"))
    (query,) = task.queries(raw)
    assert (query.identity, query.references) == (0, [])


def test_an_image_without_a_caption_among_others_is_no_test_split(tmp_path: Path) -> None:
    rows = read_coco(written(tmp_path, NOCAPS | {"annotations": NOCAPS["annotations"][1:2]}))
    assert [row.is_asked for row in rows if isinstance(row, SourceRow)] == [False, False]


def vizwiz_caption(number: int, caption: str, **marks: bool) -> dict[str, Any]:
    marks = {"is_precanned": False, "is_rejected": False, "text_detected": True} | marks
    return {"caption": caption, "image_id": number, "id": 9, **marks}


def test_vizwizs_precanned_and_rejected_captions_are_counted_and_left_out(tmp_path: Path) -> None:
    tree = {
        "info": {
            "description": "This dataset contains crowdsourced captions of images from VizWiz datasets."
        },
        "images": [
            {"file_name": f"VizWiz_train_0000000{n}.jpg", "vizwiz_url": "https://a", "id": n}
            for n in range(2)
        ],
        "annotations": [
            vizwiz_caption(0, "ITS IS A BASIL LEAVES CONTAINER."),
            vizwiz_caption(
                0, "Quality issues are too severe to recognize visual content.", is_precanned=True
            ),
            vizwiz_caption(0, "nice", is_rejected=True),
            vizwiz_caption(1, "spam", is_rejected=True),
        ],
    }
    rows = read_coco(written(tmp_path, tree))
    assert rows == [
        Skipped("annotations[1] of image id 0", "precanned caption", "caption"),
        Skipped("annotations[2] of image id 0", "rejected caption", "caption"),
        Skipped("annotations[3] of image id 1", "rejected caption", "caption"),
        SourceRow("VizWiz_train_00000000.jpg", ("ITS IS A BASIL LEAVES CONTAINER.",), {"image_id": 0}),
        SourceRow("VizWiz_train_00000001.jpg", (), {"image_id": 1}),
    ]
    Image.new("RGB", (8, 8)).save(tmp_path / "VizWiz_train_00000000.jpg")
    report = write_shards(samples_of(rows, tmp_path), tmp_path / "shards")
    assert (report.samples, report.captions) == (1, 1)
    assert report.skipped[("image", "no caption")] == 1, "its only caption was rejected"


def karpathy_image(number: int, split: str, *captions: Any, **more: Any) -> dict[str, Any]:
    sentences = [{"tokens": ["a"], "raw": raw, "imgid": number, "sentid": 5} for raw in captions]
    return {"split": split, "imgid": number, "sentids": [5], "sentences": sentences, **more}


COCO = {
    "dataset": "coco",
    "images": [
        karpathy_image(0, "test", "A man.", filepath="val2014", filename="COCO_val2014_1.jpg", cocoid=391895),
        karpathy_image(
            1, "restval", "A dog.", "Dogs.", filepath="val2014", filename="COCO_val2014_2.jpg", cocoid=522418
        ),
        karpathy_image(
            2, "train", "A bus.", 7, filepath="train2014", filename="COCO_train2014_3.jpg", cocoid=5
        ),
    ],
}


def test_karpathys_parts_of_coco(tmp_path: Path) -> None:
    path = written(tmp_path, COCO)
    rest = SourceRow("val2014/COCO_val2014_2.jpg", ("A dog.", "Dogs."), {"image_id": 522418})
    train = SourceRow("train2014/COCO_train2014_3.jpg", ("A bus.",), {"image_id": 5})
    no_text = Skipped("images[2].sentences[1]", "raw is not text (a number)", "caption")
    assert read_karpathy(path, "train,restval") == [no_text, rest, train]
    assert read_karpathy(path, "restval") == [rest]
    assert [row.file for row in read_karpathy(path, "test") if isinstance(row, SourceRow)] == [
        "val2014/COCO_val2014_1.jpg"
    ]
    assert len(read_karpathy(path)) == 4
    with pytest.raises(DataError, match=r"no image of --split val; its splits are restval, test, train"):
        read_karpathy(path, "train,val")


def test_karpathys_flickr_has_neither_folders_nor_ids_of_coco(tmp_path: Path) -> None:
    images = [karpathy_image(n, "train", "Two men.", filename=f"10000{n}.jpg") for n in range(2)]
    assert read_karpathy(written(tmp_path, {"images": images, "dataset": "flickr30k"}), "train") == [
        SourceRow("100000.jpg", ("Two men.",), {"image_id": 0}),
        SourceRow("100001.jpg", ("Two men.",), {"image_id": 1}),
    ]


def test_two_images_of_one_id_or_file_are_refused(tmp_path: Path) -> None:
    first, second = COCO["images"][:2]
    with pytest.raises(DataError, match=r"image id 391895 stands twice, the second time at images\[1\]"):
        read_karpathy(written(tmp_path, {"images": [first, second | {"cocoid": 391895}]}))
    with pytest.raises(DataError, match=r"the image ids 391895 and 522418 have one file"):
        read_karpathy(written(tmp_path, {"images": [first, second | {"filename": first["filename"]}]}))


def textcaps_record(image: str, caption: Any, number: int) -> dict[str, Any]:
    return {
        "image_id": image,
        "caption_id": number,
        "caption_str": caption,
        "caption_tokens": ["a"],
        "reference_strs": ["A sign.", "An exit sign."],
        "image_path": f"train/{image}.jpg",
        "image_classes": ["Sign"],
        "image_width": 32,
        "image_height": 24,
        "set_name": "train",
    }


def test_textcaps_has_a_record_for_each_caption(tmp_path: Path) -> None:
    records = [
        textcaps_record("00a1", "A sign.", 1),
        textcaps_record("00b2", "A bottle of Porto.", 2),
        textcaps_record("00a1", "An exit sign.", 3),
        textcaps_record("00a1", None, 4),
    ]
    assert read_textcaps(written(tmp_path, {"dataset_type": "train", "data": records})) == [
        Skipped("data[3] of '00a1'", "caption_str is not text (null)", "caption"),
        SourceRow("00a1.jpg", ("A sign.", "An exit sign."), {"image_id": "00a1"}),
        SourceRow("00b2.jpg", ("A bottle of Porto.",), {"image_id": "00b2"}),
    ]


def test_textcaps_test_split_has_no_captions(tmp_path: Path) -> None:
    tree = {"dataset_type": "test", "data": [{"image_id": "00c3", "image_path": "test/00c3.jpg"}] * 2}
    assert read_textcaps(written(tmp_path, tree)) == [
        SourceRow("00c3.jpg", (), {"image_id": "00c3"}, is_asked=True)
    ]


def test_two_ids_of_one_image_of_textcaps_are_refused(tmp_path: Path) -> None:
    records = [textcaps_record("0", "A sign.", 1), textcaps_record("0", "A bottle.", 2) | {"image_id": 0}]
    with pytest.raises(DataError, match=r"the image ids '0' and 0 have one file, '0\.jpg'"):
        read_textcaps(written(tmp_path, {"data": records}))


@pytest.mark.parametrize("mark", ["is_rejected", "is_precanned"])
@pytest.mark.parametrize(
    ("value", "is_left_out"),
    [(True, True), (1, True), (False, False), (0, False), ("false", None), (None, None)],
)
def test_a_mark_is_true_or_false(tmp_path: Path, mark: str, value: Any, is_left_out: bool | None) -> None:
    """ "false", a text, was taken for true."""
    images = [{"id": 0, "file_name": "a.jpg"}]
    path = written(tmp_path, {"images": images, "annotations": [vizwiz_caption(0, "nice", **{mark: value})]})
    if is_left_out is None:
        with pytest.raises(DataError, match=rf"annotations\[0\]\.{mark} is .*, not true or false"):
            read_coco(path)
        return
    assert [type(row) for row in read_coco(path)] == [*[Skipped] * is_left_out, SourceRow]


TEXTVQA = {"data": [{"image_id": "00a1", "question": "what?", "question_id": 3, "answers": ["x"]}]}


@pytest.mark.parametrize(
    ("read", "tree", "message"),
    [
        (read_coco, COCO, r"not COCO captions \(images\[0\] has no id\); expected an object with images"),
        (read_coco, TEXTVQA, r"not COCO captions \(no images, but 'data'\)"),
        (read_coco, {"images": []}, r"not COCO captions \(no annotations, but 'images'\)"),
        (
            read_karpathy,
            NOCAPS,
            r"not Karpathy's splits \(images\[0\] has no imgid\); expected .* sentences:",
        ),
        (
            read_karpathy,
            {"images": [karpathy_image(1, "train", filename="a.jpg") | {"sentences": ["A man."]}]},
            r"images\[0\]\.sentences\[0\] is a text, not an object",
        ),
        (read_karpathy, {"images": []}, r"not Karpathy's splits \(no image in it\)"),
        (
            read_karpathy,
            {"images": [{"imgid": 1, "split": "train"}]},
            r"images\[0\] has no filename|no sentences",
        ),
        (read_karpathy, [], r"it holds a list, not an object"),
        (
            read_textcaps,
            TEXTVQA,
            r"not TextCaps \(data\[0\] has a question: TextVQA's and ST-VQA's files do\)",
        ),
        (read_textcaps, NOCAPS, r"not TextCaps \(no data, but 'licenses', 'info', 'images', 'annotations'\)"),
        (
            read_textcaps,
            {"data": [{"image_id": None}]},
            r"data\[0\]\.image_id is null, not an integer or a text",
        ),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, read: Any, tree: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(written(tmp_path, tree))
