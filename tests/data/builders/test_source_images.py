"""Rows of every format to samples: what is kept byte for byte, what is skipped and why."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from git_scale.data.builders.source_images import SourceRow, gather, make_sample, samples_of
from git_scale.data.builders.writer import ChangedItem, SampleToWrite, Skipped
from git_scale.errors import DataError


def encode(width: int, height: int, form: str, **options: object) -> bytes:
    rng = np.random.default_rng(width)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(encode(20, 10, "JPEG"))
    (folder / "sub" / "b.png").write_bytes(encode(8, 9, "PNG"))
    (folder / "c.webp").write_bytes(encode(8, 9, "WEBP"))
    (folder / "d.gif").write_bytes(encode(8, 9, "GIF"))
    (folder / "broken.jpg").write_bytes(encode(64, 64, "JPEG")[:700])
    (tmp_path / "secret.jpg").write_bytes(encode(8, 8, "JPEG"))
    return folder


def outcome(images: Path, file: str, *captions: str, shrink: bool = False) -> list[SampleToWrite | Skipped]:
    return make_sample(images, shrink, SourceRow(file, captions))


@pytest.mark.parametrize(("file", "extension"), [("a.jpg", "jpg"), ("sub/b.png", "png"), ("c.webp", "webp")])
def test_images_keep_their_bytes(images: Path, file: str, extension: str) -> None:
    for shrink in (False, True):
        (sample,) = outcome(images, file, "one ", "two", shrink=shrink)
        assert sample.image == (images / file).read_bytes()
        assert sample.extension == extension
        assert sample.text == {"captions": ["one", "two"], "file": file}


def test_questions_go_along_with_captions_or_alone(images: Path) -> None:
    asked = tuple({"question": text, "answers": ["a", "a"], "question_id": 5} for text in ("what?", " "))
    skipped, sample = make_sample(images, False, SourceRow("a.jpg", (), {"image_id": 1}, asked))
    assert skipped == Skipped("a.jpg", "empty question", "question")
    assert sample.text == {"captions": [], "file": "a.jpg", "image_id": 1, "questions": [asked[0]]}
    (sample,) = make_sample(images, False, SourceRow("a.jpg", ("one",), {}, asked[:1]))
    assert sample.text == {"captions": ["one"], "file": "a.jpg", "questions": [asked[0]]}


def test_half_a_character_is_dropped_and_counted(images: Path) -> None:
    """It was written as a question mark, which nobody had said."""
    asked = ({"question": "what \udc00?", "answers": ["a \ud83d", "b"], "question_id": 5},)
    captions = ("a \ud83d dog", "\ud83d", "\U0001f415")
    *found, made = make_sample(images, False, SourceRow("a.jpg", captions, {}, asked))
    reason = "half a character (a lone surrogate) in it, dropped"
    assert [item.unit for item in found if isinstance(item, ChangedItem) and item.reason == reason] == [
        "caption",
        "question",
        "answer",
    ]
    assert [item for item in found if not isinstance(item, ChangedItem)] == [
        Skipped("a.jpg", "empty caption", "caption")
    ]
    assert made.text["captions"] == ["a  dog", "\U0001f415"]
    assert made.text["questions"] == [{"question": "what ?", "answers": ["a ", "b"], "question_id": 5}]


def test_the_content_decides_on_the_extension_not_the_name(images: Path) -> None:
    (images / "a.png").write_bytes((images / "a.jpg").read_bytes())
    (sample,) = outcome(images, "a.png", "text")
    assert sample.extension == "jpg"


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("d.gif", "not a JPEG, PNG or WebP image"),
        ("broken.jpg", "broken image"),
        ("gone.jpg", "missing image"),
        ("sub", "missing image"),
        ("", "missing image"),
        ("../secret.jpg", "path leaves the images folder"),
        ("sub/../../secret.jpg", "path leaves the images folder"),
        ("/etc/passwd", "path leaves the images folder"),
        ("a\0.jpg", "unreadable image"),
        ("x" * 5000, "unreadable image"),
    ],
)
def test_unusable_images_are_skipped_with_the_reason(images: Path, file: str, reason: str) -> None:
    assert outcome(images, file, "text") == [Skipped(file, reason)]


def test_a_link_out_of_the_folder_is_not_followed_but_one_within_is(images: Path) -> None:
    (images / "out.jpg").symlink_to(images.parent / "secret.jpg")
    (images / "in.jpg").symlink_to(images / "a.jpg")
    (images / "loop.jpg").symlink_to(images / "loop.jpg")
    assert outcome(images, "out.jpg", "text") == [Skipped("out.jpg", "path leaves the images folder")]
    assert isinstance(outcome(images, "in.jpg", "text")[0], SampleToWrite)
    assert isinstance(outcome(images, "loop.jpg", "text")[0], Skipped)


def test_a_named_pipe_does_not_hang_the_build(images: Path) -> None:
    os.mkfifo(images / "pipe.jpg")
    assert outcome(images, "pipe.jpg", "text") == [Skipped("pipe.jpg", "missing image")]


def test_empty_captions_are_counted_and_the_others_kept(images: Path) -> None:
    skipped, sample = outcome(images, "a.jpg", "one", " \t")
    assert skipped == Skipped("a.jpg", "empty caption", "caption")
    assert sample.text["captions"] == ["one"]
    lost = Skipped("a.jpg", "empty caption", "caption")
    assert outcome(images, "a.jpg", "", " ") == [lost, lost, Skipped("a.jpg", "no caption")]
    assert outcome(images, "a.jpg") == [Skipped("a.jpg", "no caption")]


def test_a_caption_that_an_image_has_twice_is_kept_once_and_counted(images: Path) -> None:
    skipped, sample = outcome(images, "a.jpg", "one", "two", "one ")
    assert skipped == Skipped("a.jpg", "same caption again", "caption")
    assert sample.text["captions"] == ["one", "two"]


def test_what_a_reader_skipped_is_passed_on(images: Path) -> None:
    lost = Skipped("line 3", "no image named")
    assert list(samples_of([lost], images)) == [lost]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((800, 600), (512, 384)),
        ((1000, 300), (640, 192)),
        ((400, 1200), (213, 640)),
        ((385, 385), (384, 384)),
    ],
)
def test_shrink_brings_large_images_to_the_papers_size(
    images: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    (images / "large.png").write_bytes(encode(*size, "PNG"))
    (sample,) = outcome(images, "large.png", "text", shrink=True)
    assert sample.extension == "jpg"
    with Image.open(io.BytesIO(sample.image), formats=["JPEG"]) as picture:
        assert picture.size == expected


def test_shrink_leaves_images_upright(images: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees to view
    (images / "turned.jpg").write_bytes(encode(800, 600, "JPEG", exif=exif))
    (sample,) = outcome(images, "turned.jpg", "text", shrink=True)
    with Image.open(io.BytesIO(sample.image), formats=["JPEG"]) as picture:
        assert picture.size == (384, 512)
        assert not picture.getexif()


def test_samples_come_in_the_rows_order_from_one_or_two_processes(images: Path) -> None:
    rows = [
        SourceRow("a.jpg", ("one", "")),
        SourceRow("gone.jpg", ("two",)),
        SourceRow("c.webp", ("three",), {"image_id": 7}),
    ]
    outcomes = list(samples_of(rows, images))
    assert [type(item).__name__ for item in outcomes] == [
        "Skipped",
        "SampleToWrite",
        "Skipped",
        "SampleToWrite",
    ]
    assert outcomes[-1].text == {"captions": ["three"], "file": "c.webp", "image_id": 7}
    assert list(samples_of(rows, images, workers=2)) == outcomes


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone: no such folder of images"):
        list(samples_of([], tmp_path / "gone"))


def test_gather_keeps_the_order_of_first_mention() -> None:
    pairs = [("b", "1"), ("a", "2"), ("b", "3")]
    assert gather(pairs) == [SourceRow("b", ("1", "3")), SourceRow("a", ("2",))]
