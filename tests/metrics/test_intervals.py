"""Bootstrap intervals: against the textbook's for a mean, and what belongs together."""

from __future__ import annotations

import numpy as np
import pytest

from git_scale.metrics import METRICS
from git_scale.metrics.intervals import intervals, values_of_each
from git_scale.metrics.metric import Metric, Prediction
from git_scale.metrics.scores import score


def test_the_interval_of_a_share_is_that_of_the_normal_approximation() -> None:
    """400 images, 300 of them right: 0.75 give or take 1.96 standard errors."""
    values = {"exact_match": [1.0] * 300 + [0.0] * 100}
    low, high = intervals(values, range(400))["exact_match"]
    error = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert (low, high) == pytest.approx((0.75 - error, 0.75 + error), abs=0.005)
    assert intervals(values, range(400))["exact_match"] == (low, high), "the same at every evaluation"


def test_texts_of_one_image_are_drawn_together() -> None:
    """100 images with ten equal answers each are 100 observations, not 1,000."""
    rng = np.random.default_rng(0)
    right = rng.integers(2, size=100).astype(float)
    together = intervals({"a": list(np.repeat(right, 10))}, list(np.repeat(np.arange(100), 10)))["a"]
    alone = intervals({"a": list(right)}, range(100))["a"]
    apart = intervals({"a": list(np.repeat(right, 10))}, range(1000))["a"]
    assert together == alone
    assert (apart[1] - apart[0]) < 0.4 * (alone[1] - alone[0])


def test_values_are_those_whose_mean_the_metric_is() -> None:
    said = [
        Prediction(0, "k0", 0, "", "a red square", ["a red square", "a square"]),
        Prediction(1, "k1", 1, "", "a big dog", ["the dog", "a big dog runs"]),
        Prediction(2, "k2", 2, "", "who knows", []),
        Prediction(3, "k3", 3, "", "two cats", ["two cats on a mat"]),
    ]
    names = (
        "exact_match",
        "cider",
        "rouge_l",
        "bleu_4",
        "anls",
        "vqa_accuracy",
        "contains",
        "top_1",
        "distinct",
    )
    values, metrics = values_of_each(names, said), score(names, said)
    assert set(values) == {"exact_match", "cider", "rouge_l", "anls", "vqa_accuracy", "contains"}
    for name, of_each in values.items():
        assert of_each[2] is None
        known = [value for value in of_each if value is not None]
        assert np.mean(known) == pytest.approx(metrics[name], abs=1e-12), name
    found = intervals(values, [0, 1, 2, 3])
    assert all(low <= metrics[name] <= high for name, (low, high) in found.items())


def test_a_value_that_is_not_finite_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Metric.mean_of(lambda texts: [1.0, float("nan"), float("inf")])
    monkeypatch.setattr(METRICS, "_added", {"odd": odd})
    said = [Prediction(number, "", number, "", "a", ["a"]) for number in range(3)]
    assert values_of_each(["odd"], said) == {"odd": [1.0, None, None]}


def test_nothing_known_has_no_interval() -> None:
    assert intervals({"a": [None, None]}, [0, 1]) == {}
    assert intervals({}, []) == {}
