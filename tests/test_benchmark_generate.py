"""The comparison with transformers on a tiny model: both sides say the same, and the arithmetic of the report."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from git_scale.models.build import build_model

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import generate
from git_scale.errors import UserError
from git_scale.recipes import load_run

TINY = (
    "model.encoder.image_size=32",
    "model.encoder.options={embed_dim: 32, depth: 2, num_heads: 2}",
    "model.decoder={layers: 2, width: 32, heads: 4, ffn: 64, positions: 64, init_std: 0.3}",
    "model.vocab_size=150",
    "data.image_sizes=[]",
)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_both_sides_find_the_same_texts(one_thread: None) -> None:
    pytest.importorskip("transformers")
    result = generate.run("git_base", TINY, images=3, questions=2, new_tokens=6, threads=1, budget_s=0)
    assert result["captions, same texts"] == "3 of 3"
    assert result["2 questions, same texts"] == "6 of 6"
    assert result["rounds"] == 1
    for clock in ("by wall clock", "by CPU time"):
        assert result[clock]["captions, ratio"] > 0
        assert result[clock]["2 questions, ratio"] > 0
    json.dumps(result)


def test_other_weights_say_something_else(one_thread: None) -> None:
    """Equal texts above are no accident of texts that never change."""
    pytest.importorskip("transformers")
    config = load_run("git_base", TINY).model
    torch.manual_seed(0)
    ours = build_model(config).eval()
    theirs = generate.copy_to_transformers(ours, config)
    decoding = generate.Decoding(6, 6, beams=4)
    pixels, prefixes = torch.randn(4, 1, 3, 32, 32), [[[generate.BEGIN]]] * 4
    before = generate._ours(ours, pixels, prefixes, decoding)(4)
    assert generate._theirs(theirs, pixels, prefixes, decoding)(4) == before
    with torch.no_grad():
        theirs.git.encoder.layer[0].output.dense.weight.neg_()
    assert generate._theirs(theirs, pixels, prefixes, decoding)(4) != before


def test_a_summary_is_made_of_medians() -> None:
    times = {"x, git_scale": [(2.0, 1.0), (1.0, 1.0), (9.0, 1.0)], "x, transformers": [(8.0, 3.0)]}
    assert generate.summarise(["x"], 8, times, 0) == {
        "images/s, x, git_scale": 4.0,
        "images/s, x, transformers": 1.0,
        "x, ratio": 4.0,
    }
    assert generate.summarise(["x"], 8, times, 1)["x, ratio"] == 3.0


def test_without_transformers_it_says_so(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="compares with transformers"):
        generate.run("git_base", TINY, images=1, threads=1)
