"""Result files as the evaluation servers read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest
from PIL import Image

from git_scale.config import RunConfig
from git_scale.data.tokenizer import Tokenizer
from git_scale.evaluation import results
from git_scale.evaluation.evaluator import EvaluationResult
from git_scale.evaluation.results import id_problems, write_results, write_rows
from git_scale.metrics.metric import Prediction
from git_scale.tasks import build_task

CAPTIONS = [
    Prediction(0, "s.tar:000", 42, "", "a caf\u00e9", ["the caf\u00e9"]),
    Prediction(1, "s.tar:001", "001", "", 'a "dog"', []),
]
ANSWERS = [
    Prediction(0, "s.tar:000", 42001, "what is it?", "dog", ["dog"] * 10),
    Prediction(0, "s.tar:000", 42002, "how many?", "2", ["two"]),
]


def evaluation(predictions: list[Prediction], sheet: Image.Image | None = None) -> EvaluationResult:
    name = "vqa" if predictions[0].question else "caption"
    task = build_task(name, RunConfig(), cast(Tokenizer, None))
    rows = [task.result_row(item) for item in predictions]
    metrics = {"eval/cider": 1.25, "eval/texts": 2.0}
    return EvaluationResult(metrics, predictions, sheet, [], rows, task.metrics)


def test_captions_in_cocos_format(tmp_path: Path) -> None:
    write_results(tmp_path / "new" / "out", evaluation(CAPTIONS, Image.new("RGB", (4, 3))))
    folder = tmp_path / "new" / "out"
    assert json.loads((folder / "results.json").read_text(encoding="utf-8")) == [
        {"image_id": 42, "caption": "a caf\u00e9"},
        {"image_id": "001", "caption": 'a "dog"'},
    ]
    assert json.loads((folder / "metrics.json").read_text()) == {"eval/cider": 1.25, "eval/texts": 2.0}
    assert Image.open(folder / "captions.png").size == (4, 3)
    assert sorted(path.name for path in folder.iterdir()) == [
        "captions.png",
        "intervals.json",
        "metrics.json",
        "page.html",
        "predictions.jsonl",
        "results.json",
    ]


def test_answers_in_vqas_format_and_all_predictions(tmp_path: Path) -> None:
    write_results(tmp_path, evaluation(ANSWERS))
    assert json.loads((tmp_path / "results.json").read_text()) == [
        {"question_id": 42001, "answer": "dog"},
        {"question_id": 42002, "answer": "2"},
    ]
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert lines[1] == {
        "index": 0,
        "key": "s.tar:000",
        "identity": 42002,
        "question": "how many?",
        "generated": "2",
        "references": ["two"],
        "values": {"exact_match": 0.0, "vqa_accuracy": 1.0, "anls": 0.0},
    }
    found = json.loads((tmp_path / "intervals.json").read_text())
    assert found == {"eval/exact_match": [0.5, 0.5], "eval/vqa_accuracy": [1.0, 1.0], "eval/anls": [0.5, 0.5]}
    assert not (tmp_path / "captions.png").exists()


def test_no_text_is_an_empty_list(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.json", [])
    write_rows(tmp_path / "b.json", iter([]))
    assert (
        json.loads((tmp_path / "a.json").read_text()) == json.loads((tmp_path / "b.json").read_text()) == []
    )


def test_a_write_that_fails_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_rows(path, [{"image_id": 1, "caption": "old"}])
    with pytest.raises(TypeError):
        write_rows(path, [{"image_id": 1, "caption": "new"}, {"image_id": object()}])
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
    assert json.loads(path.read_text()) == [{"image_id": 1, "caption": "old"}]


def test_ids_that_no_server_takes_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = [
        Prediction(0, "s.tar:0", "s.tar:0", "", "a", []),
        Prediction(1, "s.tar:1", "s.tar:1#0", "q", "b", []),
    ]
    assert id_problems(CAPTIONS) == id_problems(ANSWERS) == []
    assert id_problems([*CAPTIONS, *keys, CAPTIONS[0]]) == [
        "2 texts have no image_id or question_id but a sample's key, as 's.tar:0': no evaluation server takes that",
        "1 ids stand more than once, as 42: no evaluation server takes that",
    ]
    write_results(tmp_path, evaluation([*CAPTIONS, CAPTIONS[0]]))
    assert "results.json: 1 ids stand more than once" in caplog.text


def test_half_a_surrogate_does_not_lose_an_evaluation(tmp_path: Path) -> None:
    write_results(tmp_path, evaluation([Prediction(0, "s.tar:0", "\ud800", "", "a", ["\udfff"])]))
    assert json.loads((tmp_path / "results.json").read_text()) == [{"image_id": "\ud800", "caption": "a"}]


def test_a_full_disk_leaves_no_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(results, "replaced_atomically", full)
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "metrics.json").write_text("{}")
    for folder in (tmp_path / "out", tmp_path / "before"):
        with pytest.raises(OSError, match="No space left"):
            write_results(folder, evaluation(CAPTIONS))
    assert [path.name for path in tmp_path.rglob("*")] == ["before", "metrics.json"]
