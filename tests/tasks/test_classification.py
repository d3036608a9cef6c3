"""Classes as texts: what is learned, asked and scored, on one rank and on several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from git_scale.config import RunConfig
from git_scale.data.captions import TextRecord
from git_scale.data.store import RawSample
from git_scale.data.tokenizer import load_tokenizer
from git_scale.errors import ConfigError, DataError
from git_scale.evaluation.checkpoint_evaluation import evaluate_checkpoint
from git_scale.parallel.topology import Topology
from git_scale.tasks import build_task
from git_scale.tasks.classification import ClassificationTask
from git_scale.testing.distributed import run_distributed
from git_scale.testing.taught import write_taught
from git_scale.testing.tiny import COLOURS, SIDES, describe

NAMES = [describe(colour, side) for colour in COLOURS for side in SIDES]


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "class_names.txt"
    path.write_text("\n".join(NAMES) + "\n")
    return path


def task_of(squares: Path, names: Path | None) -> Any:
    data = {"task": "classification", "class_names": names and str(names)}
    run = RunConfig.model_validate({"data": data})
    return build_task("classification", run, load_tokenizer(squares / "tokenizer.model"))


def sample(*captions: str) -> RawSample:
    return RawSample("a.tar:7", b"", [], TextRecord(list(captions), [], {"image_id": "val_7"}))


def test_the_name_is_learned_and_asked_for_twice(squares: Path, names: Path) -> None:
    task = task_of(squares, names)
    raw = sample("A tiny  red square")
    (text,) = task.texts(raw, np.random.default_rng(0))
    assert text == task.prompts.caption("a tiny red square")
    assert task.reference_texts(raw) == [text]
    free, among = task.queries(raw)
    assert (free.references, free.identity, free.choices) == (["a tiny red square"], "val_7", {})
    assert list(among.choices.values()) == NAMES
    assert [query.references for query in task.queries(sample())] == [[], []], "a test server's"
    with pytest.raises(DataError, match=r"its class 'a cat' is not in data\.class_names="):
        task.texts(sample("a cat"), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("fox\nred fox\nFox\n", "two classes are named 'fox' and 'Fox'"),
        ("\n\nfox\n", "it has 1 names, and a choice takes at least two"),
        (b"\xff\xfe", "UTF-16"),
        (None, "No such file or directory"),
    ],
)
def test_names_that_cannot_be_told_apart_are_refused(
    squares: Path, tmp_path: Path, content: str | bytes | None, said: str
) -> None:
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    run = RunConfig.model_validate({"data": {"task": "classification", "class_names": str(path)}})
    (problem,) = ClassificationTask.problems_of(run)
    assert problem.startswith(f"data.class_names={path}: ") and said in problem
    with pytest.raises(ConfigError):
        task_of(squares, path)


def test_names_are_needed(squares: Path) -> None:
    (problem,) = ClassificationTask.problems_of(RunConfig())
    assert problem.startswith("data.task=classification chooses among names: set data.class_names=FILE")


def test_a_name_longer_than_what_is_generated_is_refused(squares: Path, names: Path) -> None:
    data = {"task": "classification", "class_names": str(names)}
    run = RunConfig.model_validate({"data": data, "eval": {"max_new_tokens": 3}})
    with pytest.raises(ConfigError, match=r"cannot be chosen: it has \d+ tokens, but eval\.max_new_tokens=3"):
        build_task("classification", run, load_tokenizer(squares / "tokenizer.model"))


def test_names_that_the_tokenizer_spells_alike_are_refused(squares: Path, tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("\u732b\n\u72ac\n")
    with pytest.raises(ConfigError, match="the tokenizer spells '\u732b' and '\u72ac' alike"):
        task_of(squares, path)


def evaluated(
    topology: Topology, device: torch.device, folder: Path, data: Path, stage: int, overrides: list[str]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    ds_config = {"zero_optimization": {"stage": stage}}
    found = evaluate_checkpoint(folder, data, "classification", None, overrides, ds_config, topology)
    return found.metrics, found.results


@pytest.mark.distributed
def test_a_model_that_speaks_the_names_is_right(squares: Path, tmp_path: Path, names: Path) -> None:
    """The first caption of each square is its class; the free text may be any, the ranking is of names alone."""
    folder = write_taught(tmp_path / "taught")
    given = [f"data.class_names={names}", "eval.max_new_tokens=16", "eval.beams=5", "train.micro_batch=2"]
    ((metrics, rows),) = run_distributed(evaluated, 1, folder, squares / "heldout", 0, given)
    assert metrics["eval/top_1"] == metrics["eval/top_5"] == metrics["eval/exact_match"] == 1
    assert metrics["eval/unknown_names"] == 0 and metrics["eval/texts"] == 7
    for number, row in enumerate(rows):
        right = describe(list(COLOURS)[number % 4], list(SIDES)[number % 3])
        assert (row["image_id"], row["class"], row["text"]) == (number, right, right)
        assert (
            row["ranking"][0] == right and len(set(row["ranking"])) == 5 and set(row["ranking"]) <= set(NAMES)
        )
    greedy = [*given[:2], "train.micro_batch=2", "eval.beams=1"]
    ((metrics, rows),) = run_distributed(evaluated, 1, folder, squares / "heldout", 0, greedy)
    assert metrics["eval/top_1"] == 1 and "eval/top_5" not in metrics
    assert all(row["ranking"] == [row["class"]] for row in rows)
