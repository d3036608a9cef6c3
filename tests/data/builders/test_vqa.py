"""VQA files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from git_scale.data.builders.source_images import SourceRow
from git_scale.data.builders.vqa import read_vqa
from git_scale.data.builders.writer import Skipped
from git_scale.errors import DataError

QUESTIONS = {
    "data_subtype": "val2014",
    "questions": [
        {"image_id": 42, "question": "What is it?", "question_id": 42000},
        {"image_id": 7, "question": "How many?", "question_id": 7000},
        {"image_id": 42, "question": "Is it red?", "question_id": 42001},
    ],
}
ANSWERS = {42000: ["dog"] * 9 + ["cat"], 7000: ["2", "two"], 42001: ["yes"]}
ANNOTATIONS = {
    "annotations": [
        {"question_id": number, "answers": [{"answer": text, "answer_id": 1} for text in texts]}
        for number, texts in ANSWERS.items()
    ]
}


def save(path: Path, tree: Any) -> Path:
    path.write_text(json.dumps(tree))
    return path


def read(tmp_path: Path, questions: Any, annotations: Any = None, name: str | None = None) -> list[SourceRow]:
    answers = None if annotations is None else save(tmp_path / "annotations.json", annotations)
    return read_vqa(save(tmp_path / "questions.json", questions), answers, name)


def question(text: str, number: int | str, answers: list[str]) -> dict[str, Any]:
    return {"question": text, "answers": answers, "question_id": number}


def test_questions_are_joined_with_answers_and_gathered_by_image(tmp_path: Path) -> None:
    first = (
        question("What is it?", 42000, ["dog"] * 9 + ["cat"]),
        question("Is it red?", 42001, ["yes"]),
    )
    second = (question("How many?", 7000, ["2", "two"]),)
    assert read(tmp_path, QUESTIONS, ANNOTATIONS) == [
        SourceRow("COCO_val2014_000000000042.jpg", (), {"image_id": 42}, first),
        SourceRow("COCO_val2014_000000000007.jpg", (), {"image_id": 7}, second),
    ]


def test_a_test_split_has_no_answers_and_the_images_of_its_whole(tmp_path: Path) -> None:
    rows = read(tmp_path, QUESTIONS | {"data_subtype": "test-dev2015"})
    assert rows[1] == SourceRow(
        "COCO_test2015_000000000007.jpg", (), {"image_id": 7}, (question("How many?", 7000, []),)
    )


def test_textvqa(tmp_path: Path) -> None:
    tree = {
        "data": [
            {"image_id": "00a1", "question": "what brand?", "question_id": 3, "answers": ["x", "x", "y"]},
            {"image_id": "00a1", "question": "what year?", "question_id": 4},
        ]
    }
    asked = (question("what brand?", 3, ["x", "x", "y"]), question("what year?", 4, []))
    assert read(tmp_path, tree) == [SourceRow("00a1.jpg", (), {"image_id": "00a1"}, asked)]


@pytest.mark.parametrize("there", [True, False])
def test_annotations_beside_textvqas_file_are_refused(tmp_path: Path, there: bool) -> None:
    tree = {"data": [{"image_id": "a", "question": "what?", "question_id": 3, "answers": ["x"]}]}
    questions, annotations = save(tmp_path / "q.json", tree), tmp_path / "a.json"
    if there:
        save(annotations, ANNOTATIONS)
    with pytest.raises(
        DataError, match=r"q\.json: TextVQA's file holds its answers; leave --annotations out"
    ):
        read_vqa(questions, annotations)


def test_the_name_of_the_images_can_be_given(tmp_path: Path) -> None:
    tree = {"questions": QUESTIONS["questions"]}
    assert [row.file for row in read(tmp_path, tree, name="{image_id:04d}.png")] == ["0042.png", "0007.png"]
    with pytest.raises(DataError, match="name no data_subtype"):
        read(tmp_path, tree)


@pytest.mark.parametrize(
    "name", ["{image_id:012d", "{number}.jpg", "{}.jpg", "{image_id.x}", "{image_id:zz}", "{image_id[0]}.jpg"]
)
def test_a_name_that_does_not_fit_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"does not fit image_id 42 .* give --image-name"):
        read(tmp_path, QUESTIONS, ANNOTATIONS, name)


def test_annotations_of_another_split_are_refused(tmp_path: Path) -> None:
    annotations = {"annotations": ANNOTATIONS["annotations"][1:]}
    with pytest.raises(DataError, match="question 42000 has no annotation; are questions and"):
        read(tmp_path, QUESTIONS, annotations)


@pytest.mark.parametrize(("value", "kind"), [(None, "null"), (["dog"], "a list"), (2, "a number")])
def test_what_is_no_text_is_skipped_with_its_id(tmp_path: Path, value: Any, kind: str) -> None:
    """It was written out as Python spells it: people answered "None"."""
    questions = [{"image_id": 1, "question": f"what {n}?", "question_id": n} for n in range(3)]
    questions.append({"image_id": 1, "question": value, "question_id": 3})
    given: list[list[Any]] = [["dog", value], [value, value], ["cat", " "], ["yes"]]
    asked = (question("what 0?", 0, ["dog"]), question("what 2?", 2, ["cat"]))
    no_answer, no_question = f"answer is not text ({kind})", f"question is not text ({kind})"
    answers = [
        Skipped("question_id 0", no_answer, "answer"),
        *[Skipped("question_id 1", no_answer, "answer")] * 2,
        Skipped("question_id 2", "empty answer", "answer"),
    ]
    annotations = {
        "annotations": [
            {"question_id": n, "answers": [{"answer": text} for text in texts]}
            for n, texts in enumerate(given)
        ]
    }
    tree = {"questions": questions, "data_subtype": "val2014"}
    lost = [
        Skipped("question_id 1", "question without an answer", "question"),
        Skipped("question_id 3", no_question, "question"),
    ]
    row = SourceRow("COCO_val2014_000000000001.jpg", (), {"image_id": 1}, asked)
    assert read(tmp_path, tree, annotations) == [*answers, *lost, row]
    textvqa = {"data": [item | {"answers": texts} for item, texts in zip(questions, given, strict=True)]}
    rows = read(tmp_path, textvqa)
    assert rows[-1] == SourceRow("1.jpg", (), {"image_id": 1}, asked)
    assert sorted(rows[:-1]) == sorted([*answers, *lost])


def test_annotations_of_no_question_are_counted(tmp_path: Path) -> None:
    tree = QUESTIONS | {"questions": QUESTIONS["questions"][:1]}
    assert read(tmp_path, tree, ANNOTATIONS)[:2] == [
        Skipped("question_id 7000", "annotation of no question", "annotation"),
        Skipped("question_id 42001", "annotation of no question", "annotation"),
    ]


def test_ids_that_stand_twice_are_refused(tmp_path: Path) -> None:
    """The second answers took the place of the first; two questions of one id had the same answers."""
    twice = {"annotations": [*ANNOTATIONS["annotations"], ANNOTATIONS["annotations"][1]]}
    with pytest.raises(
        DataError, match=r"question_id 7000 has two annotations, the second at annotations\[3\]"
    ):
        read(tmp_path, QUESTIONS, twice)
    again = {"image_id": 8, "question": "Again?", "question_id": 7000}
    for tree in (QUESTIONS | {"questions": [*QUESTIONS["questions"], again]}, {"data": [again, again]}):
        with pytest.raises(DataError, match=r"question_id 7000 stands twice, again at .*\('Again\?'\)"):
            read(tmp_path, tree)


def test_a_question_and_its_annotation_are_about_one_image(tmp_path: Path) -> None:
    annotations = [item | {"image_id": 42} for item in ANNOTATIONS["annotations"]]
    with pytest.raises(DataError, match="question 7000 is about image_id 7, its annotation about 42"):
        read(tmp_path, QUESTIONS, {"annotations": annotations})


def test_a_name_that_gives_two_images_one_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the image ids 42 and 7 have one file, 'same\.jpg'"):
        read(tmp_path, QUESTIONS, ANNOTATIONS, "same.jpg")


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"questions": 3, "data_subtype": "x"},
        {"questions": [{"image_id": 1}], "data_subtype": "x"},
        {"questions": [{"image_id": [], "question": "a", "question_id": 1}], "data_subtype": "x"},
        {"data": [3]},
        {"data": [{"image_id": 1, "question": "a", "question_id": 1, "answers": 3}]},
    ],
)
def test_another_form_is_refused(tmp_path: Path, tree: Any) -> None:
    with pytest.raises(DataError, match=r"not VQA questions .* expected an object with questions"):
        read(tmp_path, tree)


@pytest.mark.parametrize(
    "tree", [{}, {"annotations": [{}]}, {"annotations": [{"question_id": 1, "answers": [3]}]}]
)
def test_another_form_of_annotations_is_refused(tmp_path: Path, tree: Any) -> None:
    with pytest.raises(DataError, match=r"annotations\.json: not VQA annotations"):
        read(tmp_path, QUESTIONS, tree)


def test_an_answer_of_another_form_is_named_with_its_record(tmp_path: Path) -> None:
    tree = {"annotations": [{"question_id": 1, "answers": []}, {"question_id": 2, "answers": ["x"]}]}
    with pytest.raises(DataError, match=r"\(annotations\[1\]\.answers\[0\] is a text, not an object\)"):
        read(tmp_path, QUESTIONS, tree)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "not a readable JSON"), (b"\xff", "not a readable JSON"), (b"[]", "holds a list")],
)
def test_broken_json_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "questions.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_vqa(path)
