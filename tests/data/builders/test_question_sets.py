"""Questions of ST-VQA, OCR-VQA and VizWiz-VQA, as they are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from git_scale.data.builders.ocrvqa import read_ocrvqa
from git_scale.data.builders.source_images import SourceRow, samples_of
from git_scale.data.builders.stvqa import read_stvqa
from git_scale.data.builders.vizwiz_vqa import read_vizwiz_vqa
from git_scale.data.builders.writer import Skipped, write_shards
from git_scale.data.store import open_store
from git_scale.errors import DataError


def written(tmp_path: Path, tree: Any) -> Path:
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(tree))
    return path


def asked(question: str, number: int | str, *answers: str, **more: Any) -> dict[str, Any]:
    return {"question": question, "answers": list(answers), "question_id": number, **more}


def stvqa(number: int, file: str, **more: Any) -> dict[str, Any]:
    record = {
        "question": "What does it say?",
        "file_path": file,
        "file_name": Path(file).name,
        "image_id": Path(file).stem,
        "dataset": "coco-text",
        "set_name": "train",
        "question_tokens": ["What"],
        "answers": ["stop", "STOP"],
        "question_id": number,
    }
    return record | more


def test_stvqas_questions_are_gathered_by_file(tmp_path: Path) -> None:
    records = [
        stvqa(0, "coco-text/a.jpg"),
        stvqa(1, "iiit_text/b.jpg", answers=["7", 7, " "]),
        stvqa(2, "coco-text/a.jpg", answers=[]),
        stvqa(3, "coco-text/a.jpg", question=None),
        stvqa(4, "coco-text/a.jpg", answers=[None]),
    ]
    questions = (asked("What does it say?", 0, "stop", "STOP"), asked("What does it say?", 2))
    assert read_stvqa(written(tmp_path, {"data": records, "task_name": "task 3"})) == [
        Skipped("question_id 1", "answer is not text (a number)", "answer"),
        Skipped("question_id 1", "empty answer", "answer"),
        Skipped("question_id 3", "question is not text (null)", "question"),
        Skipped("question_id 4", "answer is not text (null)", "answer"),
        Skipped("question_id 4", "question without an answer", "question"),
        SourceRow("coco-text/a.jpg", (), {"image_id": "coco-text/a.jpg"}, questions),
        SourceRow(
            "iiit_text/b.jpg", (), {"image_id": "iiit_text/b.jpg"}, (asked("What does it say?", 1, "7"),)
        ),
    ]


def test_every_tenth_image_of_stvqa_can_be_held_out(tmp_path: Path) -> None:
    """Two questions for each of 25 images: none is in both parts, and no question is lost."""
    path = written(tmp_path, {"data": [stvqa(n, f"coco-text/{n // 2}.jpg") for n in range(50)]})
    files = {
        part: [row.file for row in read_stvqa(path, part) if isinstance(row, SourceRow)]
        for part in ("train", "heldout")
    }
    assert files["heldout"] == ["coco-text/9.jpg", "coco-text/19.jpg"]
    assert len(files["train"]) == 23 and not set(files["train"]) & set(files["heldout"])
    assert all(len(row.questions) == 2 for row in read_stvqa(path, "train") if isinstance(row, SourceRow))
    with pytest.raises(DataError, match=r"no image of --split val; its splits are heldout, train"):
        read_stvqa(path, "val")


def test_stvqas_test_file_has_no_answers(tmp_path: Path) -> None:
    record = stvqa(9, "test/c.jpg")
    del record["answers"]
    (row,) = read_stvqa(written(tmp_path, {"data": [record]}))
    assert row == SourceRow("test/c.jpg", (), {"image_id": "test/c.jpg"}, (asked("What does it say?", 9),))


def cover(
    split: int, url: str = "http://ecx.images-amazon.com/images/I/51l6.jpg", **more: Any
) -> dict[str, Any]:
    return {
        "imageURL": url,
        "questions": ["Who wrote this book?", "Is this a comedy book?"],
        "answers": ["Sandra Boynton", "No"],
        "title": "Mom's Family Wall Calendar 2016",
        "authorName": "Sandra Boynton",
        "genre": "Calendars",
        "split": split,
        **more,
    }


def test_ocrvqas_covers_are_named_by_id_and_the_ending_of_their_url(tmp_path: Path) -> None:
    tree = {
        "761183272": cover(1),
        "0001": cover(2, "http://a.b/I/x.y.png?size=9"),
        "0002": cover(3, answers=["", "No"]),
    }
    path = written(tmp_path, tree)
    questions = (
        asked("Who wrote this book?", "761183272-0", "Sandra Boynton"),
        asked("Is this a comedy book?", "761183272-1", "No"),
    )
    assert read_ocrvqa(path, "train") == [
        SourceRow("761183272.jpg", (), {"image_id": "761183272"}, questions)
    ]
    (val,) = read_ocrvqa(path, "val")
    assert isinstance(val, SourceRow) and val.file == "0001.png"
    assert read_ocrvqa(path, "test") == [
        Skipped("question_id 0002-0", "empty answer", "answer"),
        Skipped("question_id 0002-0", "question without an answer", "question"),
        SourceRow("0002.jpg", (), {"image_id": "0002"}, (asked("Is this a comedy book?", "0002-1", "No"),)),
    ]
    assert len([row for row in read_ocrvqa(path) if isinstance(row, SourceRow)]) == 3


def test_an_id_leads_to_no_file_outside_of_the_covers(tmp_path: Path) -> None:
    covers = tmp_path / "covers"
    covers.mkdir()
    for file in (tmp_path / "secret.jpg", covers / "1.jpg"):
        Image.new("RGB", (8, 8)).save(file)
    rows = read_ocrvqa(written(tmp_path, {"../secret": cover(1), "1": cover(1), "2": cover(1)}))
    report = write_shards(samples_of(rows, covers), tmp_path / "shards")
    assert (report.samples, report.questions, report.answers) == (1, 2, 2)
    assert report.skipped == {("image", "path leaves the images folder"): 1, ("image", "missing image"): 1}


def vizwiz(image: str, *answers: Any, **more: Any) -> dict[str, Any]:
    given = [{"answer": answer, "answer_confidence": "yes"} for answer in answers]
    return {"image": image, "question": "What is this?", "answers": given, **more}


def test_vizwiz_knows_a_question_by_its_image(tmp_path: Path) -> None:
    tree = [
        vizwiz("VizWiz_val_00000000.jpg", "basil", "basil leaves", answer_type="other", answerable=1),
        vizwiz("VizWiz_val_00000001.jpg", "unanswerable", None, answer_type="unanswerable", answerable=0),
    ]
    first, second = "VizWiz_val_00000000.jpg", "VizWiz_val_00000001.jpg"
    of_first = asked("What is this?", first, "basil", "basil leaves", answer_type="other", answerable=1)
    of_second = asked("What is this?", second, "unanswerable", answer_type="unanswerable", answerable=0)
    assert read_vizwiz_vqa(written(tmp_path, tree)) == [
        Skipped(f"question_id {second}", "answer is not text (null)", "answer"),
        SourceRow(first, (), {"image_id": first}, (of_first,)),
        SourceRow(second, (), {"image_id": second}, (of_second,)),
    ]


def test_vizwizs_test_split_is_asked_without_answers(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "VizWiz_test_00000000.jpg")
    tree = [{"image": "VizWiz_test_00000000.jpg", "question": "Can you tell me what is in this can, please?"}]
    report = write_shards(samples_of(read_vizwiz_vqa(written(tmp_path, tree)), tmp_path), tmp_path / "shards")
    assert (report.samples, report.questions, report.answers) == (1, 1, 0)
    (question,) = open_store(tmp_path / "shards").read(0).text.questions
    assert question["question_id"] == "VizWiz_test_00000000.jpg" and question["answers"] == []


VQA2 = {"questions": [{"image_id": 1, "question": "a", "question_id": 1}], "data_subtype": "x"}
TEXTVQA = {"data": [{"image_id": "a", "question": "what?", "question_id": 3, "answers": ["x"]}]}


@pytest.mark.parametrize(
    ("read", "tree", "message"),
    [
        (
            read_stvqa,
            VQA2,
            r"not ST-VQA \(no data, but 'questions', 'data_subtype'\); expected an object with data",
        ),
        (read_stvqa, TEXTVQA, r"not ST-VQA \(data\[0\] has no file_path\)"),
        (read_stvqa, {"data": [stvqa(1, "a", file_path=3)]}, r"data\[0\]\.file_path is not a text"),
        (read_stvqa, {"data": [stvqa(1, "a", answers="x")]}, r"data\[0\]\.answers is a text, not a list"),
        (read_stvqa, {"data": [stvqa(1, "a")] * 2}, r"question_id 1 stands twice, again at data\[1\]"),
        (
            read_ocrvqa,
            VQA2,
            r"not OCR-VQA \('questions' is a list, not an object\); expected an object with ID",
        ),
        (read_ocrvqa, {"1": cover(4)}, r"1\.split is 4, not 1, 2 or 3"),
        (read_ocrvqa, {"1": cover(True)}, r"1\.split is True"),  # type: ignore[arg-type]
        (read_ocrvqa, {"1": cover([1])}, r"1\.split is \[1\], not 1, 2 or 3"),  # type: ignore[arg-type]
        (read_ocrvqa, {"1": cover({})}, r"1\.split is \{\}, not 1, 2 or 3"),  # type: ignore[arg-type]
        (
            read_ocrvqa,
            {"7": cover(1, "http://[::1/a.jpg")},
            r"questions\.json: not OCR-VQA \(7\.imageURL is 'http://\[::1/a\.jpg', no address",
        ),
        (read_ocrvqa, {"7": cover(1, "http://ex\u2100mple/a.jpg")}, r"7\.imageURL is .*, no address"),
        (read_ocrvqa, {"1": cover(1, answers=["x"])}, r"1 has 2 questions, but 1 answers"),
        (read_ocrvqa, {"1": cover(1, questions="Who?")}, r"no lists of questions and answers"),
        (read_ocrvqa, [], r"not OCR-VQA \(it holds a list, not an object\)"),
        (
            read_vizwiz_vqa,
            VQA2,
            r"not VizWiz-VQA \(it holds an object of questions, data_subtype, not a list\)",
        ),
        (read_vizwiz_vqa, 7, r"not VizWiz-VQA \(it holds a number, not a list\)"),
        (read_vizwiz_vqa, [{"image": 3, "question": "a"}], r"questions\[0\]\.image is not a text"),
        (read_vizwiz_vqa, [vizwiz("a", "x")] * 2, r"question_id 'a' stands twice"),
        (
            read_vizwiz_vqa,
            [vizwiz("a") | {"answers": ["x"]}],
            r"questions\[0\]\.answers\[0\] is a text, not an object",
        ),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, read: Any, tree: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(written(tmp_path, tree))
