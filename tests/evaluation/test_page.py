"""The page of an evaluation: what is on it, and that texts stay texts."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from git_scale.data.store import open_store
from git_scale.evaluation.page import AT_RANDOM, OF_EACH_END, Card, chosen, disagreement, write_page
from git_scale.metrics import METRICS
from git_scale.metrics.metric import Metric

EVIL = "</script><script>alert(1)</script> & <b>bold</b> \ud83d"


def card(number: int, spread: float = 0.0, **values: float) -> Card:
    return Card(number, f"s.tar:{number}", "", f"text {number}", [EVIL], values, spread)


def data_of(page: str) -> Any:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found)


def test_ends_random_ones_and_the_largest_spread_are_shown() -> None:
    cards = [card(number, spread=float(number == 500), a=float(number), b=0.5) for number in range(1000)]
    numbers = {each.number for each in chosen(cards, ["a", "b"])}
    assert {*range(OF_EACH_END), *range(1000 - OF_EACH_END, 1000), 500} <= numbers
    assert len(numbers) < 4 * OF_EACH_END + AT_RANDOM + 2
    assert [each.number for each in chosen(cards[:5], ["a"])] == [0, 1, 2, 3, 4]


def test_disagreement_is_the_difference_of_ranks() -> None:
    values = [{"a": 0.0, "b": 9.0}, {"a": 1.0, "b": 5.0}, {"a": 2.0, "b": 7.0}, {"a": 3.0}]
    # ranks of a: 1/8, 3/8, 5/8, 7/8; of b: 5/6, 1/6, 3/6
    expected = [5 / 6 - 1 / 8, 3 / 8 - 1 / 6, 5 / 8 - 3 / 6, 0]
    assert disagreement(values, ["a", "b"]) == pytest.approx(expected)
    assert disagreement(values, ["a"]) == [0, 0, 0, 0]


def test_texts_are_data_and_images_are_inside(squares: Path, tmp_path: Path) -> None:
    store = open_store(squares / "heldout")
    cards = [card(0, a=1.0), card(99, a=0.5)]
    rows = [("metric", "value"), ("a", "0.75")]
    write_page(tmp_path / "page.html", f"runs/DATA{EVIL[:9]}", cards, rows, "x", store)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<script") == 2 and "<b>bold" not in page
    data = data_of(page)
    assert data["cards"][0]["right"] == [EVIL] and data["table"] == [["metric", "value"], ["a", "0.75"]]
    kind, _, packed = data["cards"][0]["image"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(packed))).size == (32, 32)
    assert data["cards"][1]["image"] is None, "what cannot be read has no image"
    assert "http" not in page, "nothing is fetched"


def test_a_metric_of_which_less_is_better_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    errors = Metric.mean_of(lambda texts: [1.0] * len(texts), better="lower")
    monkeypatch.setattr(METRICS, "_added", {"errors": errors})
    cards = [card(0, errors=1.0, exact_match=0.0, unknown=2.0)]
    write_page(tmp_path / "page.html", "t", cards, [("metric",)], "x", None)
    data = data_of((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert data["lower"] == ["errors"] and data["metrics"] == ["errors", "exact_match", "unknown"]
