"""Two evaluations of the same samples: differences, their intervals, and what cannot be compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from git_scale.data.store import open_store
from git_scale.errors import DataError
from git_scale.evaluation.compare import compare_results, describe_differences, write_comparison
from git_scale.evaluation.evaluator import EvaluationResult
from git_scale.evaluation.results import write_results
from git_scale.metrics.metric import Prediction
from git_scale.metrics.scores import score

METRICS = ("exact_match", "bleu_1")


def write(folder: Path, right: np.ndarray) -> Path:
    """Each of the images asked twice; `right` [images, 2] says which answers equal the reference."""
    said = [
        Prediction(image, f"s.tar:{image}", image, f"q{number}", "yes" if is_right else "no", ["yes"])
        for image, row in enumerate(right)
        for number, is_right in enumerate(row)
    ]
    metrics = {f"eval/{name}": value for name, value in score(METRICS, said).items()}
    write_results(folder, EvaluationResult(metrics, said, None, [], [], METRICS))
    return folder


def test_a_difference_is_paired(tmp_path: Path) -> None:
    """Both are right of half the images; the second mends one in ten and breaks none, which is clear."""
    base = np.arange(200) % 2 == 0
    mended = base | (np.arange(200) % 10 == 1)
    first = write(tmp_path / "a", np.stack([base, base], 1))
    second = write(tmp_path / "b", np.stack([mended, mended], 1))
    exact, bleu, *counts = compare_results(first, second)
    assert (exact.metric, exact.first, exact.second) == ("exact_match", 0.5, 0.6)
    assert (exact.raised, exact.lowered) == (40, 0)
    error = 1.96 * (0.1 * 0.9 / 200) ** 0.5  # of a mean over 200 images, not 400 texts
    assert (exact.low, exact.high) == pytest.approx((0.1 - error, 0.1 + error), abs=0.008)
    assert exact.is_clear
    assert (bleu.metric, bleu.low, bleu.is_clear) == ("bleu_1", None, False), "no mean over texts"
    assert {item.metric for item in counts} == {"images", "texts"}
    said = describe_differences(first, second, [exact, bleu])
    assert "beyond chance at 95 %: exact_match" in said and "+0.1" in said


def test_equal_evaluations_differ_in_nothing(tmp_path: Path) -> None:
    right = np.random.default_rng(0).integers(2, size=(50, 2))
    first, second = write(tmp_path / "a", right), write(tmp_path / "b", right)
    exact = compare_results(first, second)[0]
    assert (exact.difference, exact.low, exact.high, exact.raised, exact.lowered) == (0, 0, 0, 0, 0)
    assert "beyond chance at 95 %: nothing" in describe_differences(first, second, [exact])


def test_a_difference_by_chance_is_not_clear(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    first = write(tmp_path / "a", rng.integers(2, size=(40, 2)))
    second = write(tmp_path / "b", rng.integers(2, size=(40, 2)))
    exact = compare_results(first, second)[0]
    assert exact.difference != 0 and not exact.is_clear


def test_a_text_may_hold_any_character(tmp_path: Path) -> None:
    """U+2028 ends a line for Python's splitlines, and not in a file of JSON lines."""
    said = [
        Prediction(0, "s.tar:0", 0, "", "a\u2028b\x85c", ["a"]),
        Prediction(1, "s.tar:1", 1, "", "a", ["a"]),
    ]
    for name in "ab":
        write_results(
            tmp_path / name, EvaluationResult({"eval/exact_match": 0.5}, said, None, [], [], METRICS)
        )
    (exact,) = compare_results(tmp_path / "a", tmp_path / "b")
    assert (exact.first, exact.difference) == (0.5, 0)


def test_other_samples_and_older_results_are_refused(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", np.ones((3, 2))), write(tmp_path / "b", np.ones((4, 2)))
    with pytest.raises(DataError, match=r"a: 2 of 8 texts of .*b are not in it, as 's.tar:3'"):
        compare_results(second, first)
    with pytest.raises(DataError, match=r"b: it has 2 texts that .*a has not"):
        compare_results(first, second)
    with pytest.raises(DataError, match=r"nowhere/predictions.jsonl: No such file"):
        compare_results(first, tmp_path / "nowhere")
    (second / "predictions.jsonl").write_text(
        json.dumps({"key": "k", "question": "", "generated": "x"}) + "\n"
    )
    with pytest.raises(DataError, match=r"no values of metrics in it: evaluate again"):
        compare_results(first, second)


DAMAGE: dict[str, tuple[dict[str, Any], str]] = {
    "text": (
        {"values": {"exact_match": "1"}},
        r'its values is {"exact_match": "1"}, and an object of finite',
    ),
    "list": ({"values": {"exact_match": [1]}}, "its values is"),
    "no object": ({"values": [1]}, r"its values is \[1\]"),
    "nan": ({"values": {"exact_match": float("nan")}}, r'its values is {"exact_match": NaN}'),
    "boundless": ({"values": {"exact_match": 10**400}}, "its values is"),
    "key": ({"key": ["s.tar:0"]}, r'its key is \["s.tar:0"\], and a text is wanted'),
    "index": ({"index": -1}, "its index is -1, and the number of a sample is wanted"),
    "generated": ({"generated": None}, "its generated is null"),
    "references": ({"references": "yes"}, "its references is .yes., and a list of texts is wanted"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_line_is_named(kind: str, tmp_path: Path) -> None:
    change, said = DAMAGE[kind]
    first, second = write(tmp_path / "a", np.ones((2, 2))), write(tmp_path / "b", np.ones((2, 2)))
    change_line(second, 2, change)
    with pytest.raises(DataError, match=rf"b/predictions\.jsonl: line 3: {said}.*: evaluate again"):
        compare_results(first, second)


def change_line(folder: Path, number: int, change: dict[str, Any]) -> None:
    path = folder / "predictions.jsonl"
    lines = path.read_text().splitlines()
    lines[number] = json.dumps({**json.loads(lines[number]), **change})
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("value", ["1", [1], None, True, float("nan"), float("inf")])
def test_a_metric_that_is_no_number_is_named(value: Any, tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", np.ones((2, 2))), write(tmp_path / "b", np.ones((2, 2)))
    (second / "metrics.json").write_text(json.dumps({"eval/exact_match": value}))
    with pytest.raises(DataError, match=r"b/metrics\.json: eval/exact_match is .* a finite number is wanted"):
        compare_results(first, second)


def test_without_a_text_a_metric_or_the_same_references_there_is_nothing_to_compare(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a", np.ones((2, 2))), write(tmp_path / "b", np.ones((2, 2)))
    (second / "metrics.json").write_text('{"eval/cider": 1.0, "eval/texts": 4}')
    with pytest.raises(
        DataError, match=r"no metric of .*a: cider are other than exact_match, bleu_1; compare"
    ):
        compare_results(first, second)
    change_line(second, 1, {"references": ["no"]})
    with pytest.raises(
        DataError, match=r"b: 1 of 4 texts have other references than in .*a, as of 's\.tar:0'"
    ):
        compare_results(first, second)
    (second / "predictions.jsonl").write_text("")
    with pytest.raises(DataError, match="no text in it, so that there is nothing to compare"):
        compare_results(first, second)


def test_a_test_split_without_answers_is_compared_by_its_texts(tmp_path: Path) -> None:
    for name in "ab":
        said = [Prediction(0, "s.tar:0", 0, "", name, [])]
        write_results(tmp_path / name, EvaluationResult({"eval/texts": 1.0}, said, None, [], [], ()))
    (texts,) = write_comparison(tmp_path / "page.html", tmp_path / "a", tmp_path / "b", None)
    assert (texts.metric, texts.difference) == ("texts", 0)


def test_the_page_is_of_the_same_data_and_replaces_no_result(tmp_path: Path, squares: Path) -> None:
    store = open_store(squares / "heldout")
    for name in "ab":
        said = [Prediction(1, store.key(1), 1, "", name, ["a"])]
        write_results(tmp_path / name, EvaluationResult({"eval/texts": 1.0}, said, None, [], [], METRICS))
    done = compare(tmp_path, "--data", squares / "heldout", "--out", tmp_path / "b" / "comparison.html")
    assert done.returncode == 0, done.stderr
    again = compare(tmp_path, "--data", squares / "heldout", "--out", tmp_path / "b" / "comparison.html")
    assert again.returncode == 0, again.stderr
    for name in ("metrics.json", "predictions.jsonl", "page.html"):
        before = (tmp_path / "b" / name).read_bytes()
        refused = compare(tmp_path, "--out", tmp_path / "b" / name)
        assert refused.returncode == 2 and f"it is a file of {tmp_path / 'b'}, which" in refused.stderr
        assert (tmp_path / "b" / name).read_bytes() == before
    (shard,) = (squares / "heldout").glob("*-000000.tar")
    shown = compare(tmp_path, "--data", squares / "heldout", "--out", shard)
    assert shown.returncode == 2 and f"it is a file of {squares / 'heldout'}" in shown.stderr
    change_line(tmp_path / "a", 0, {"index": 0})
    other = compare(tmp_path, "--data", squares / "heldout", "--out", tmp_path / "c.html")
    assert other.returncode == 2 and "Traceback" not in other.stderr
    assert other.stderr == (
        f"--data {squares / 'heldout'}: sample 0 is {store.key(0)!r}, where {tmp_path / 'a'} has {store.key(1)!r}:"
        " give the shards that were evaluated\n"
    )
    change_line(tmp_path / "a", 0, {"index": 10**6})
    other = compare(tmp_path, "--data", squares / "heldout", "--out", tmp_path / "c.html")
    assert other.returncode == 2 and "sample 1000000 is none, there are" in other.stderr
    assert not (tmp_path / "c.html").exists()


def compare(folder: Path, *more: str | Path) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    command = [sys.executable, root / "tools" / "evaluate.py", "compare", folder / "a", folder / "b", *more]
    environment = os.environ | {"PYTHONPATH": str(root)}
    return subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300
    )
