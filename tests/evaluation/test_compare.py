"""Two evaluations of the same samples: differences, their intervals, and what cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from git_scale.errors import DataError
from git_scale.evaluation.compare import compare_results, describe_differences
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
