"""The table of tasks: names that are not in it, and recipes that name a task which is not loaded."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

import git_scale
from git_scale.checkpoint.detect import open_checkpoint
from git_scale.checkpoint.native import export_native
from git_scale.config import RunConfig
from git_scale.data.tokenizer import Tokenizer
from git_scale.errors import ConfigError
from git_scale.evaluation.checkpoint_evaluation import evaluation_run
from git_scale.recipes import load_run
from git_scale.tasks import TASKS, build_task, check_metric
from git_scale.tasks.caption import CaptionTask
from git_scale.tasks.task import Task
from git_scale.testing.taught import write_taught
from git_scale.testing.tiny import draw_square


def test_an_unknown_task_is_answered_with_the_nearest_and_all() -> None:
    with pytest.raises(ConfigError) as caught:
        load_run("git_base", ["data.task=captions", "train.stepz=3"])
    unknown_key, unknown_task = caught.value.problems
    assert "train.stepz" in unknown_key
    assert unknown_task == (
        "data.task='captions': there is none of that name; did you mean caption?; there are caption, vqa,"
        " classification, scene_text, text_only, and those of your own modules: plugins=[MODULE]"
    )


@pytest.mark.parametrize("name", list(TASKS))
def test_a_task_of_the_package_is_usable_in_a_run(name: str) -> None:
    assert load_run("git_base", [f"data.task={name}"]).data.task == name
    assert TASKS[name].learns_from.what and TASKS[name].asks_about.what


def test_the_best_checkpoint_may_be_that_of_the_lowest_loss() -> None:
    for task in ("caption", "vqa"):
        check_metric(task, "loss")
        check_metric(task, "exact_match")
        check_metric(task, None)
    with pytest.raises(
        ConfigError, match=r"checkpoint.best='cider': with data.task=vqa it is one of .*loss$"
    ):
        check_metric("vqa", "cider")
    with pytest.raises(ConfigError) as caught:
        check_metric("caption", "blue_4")
    assert caught.value.problems == [
        "checkpoint.best='blue_4': with data.task=caption it is one of exact_match, bleu_1, bleu_2, bleu_3, bleu_4,"
        " rouge_l, cider, loss; did you mean bleu_4?"
    ]
    with pytest.raises(ConfigError, match="it is one of exact_match"):
        check_metric("caption", "distinct")  # it describes the texts


def test_a_task_with_a_metric_that_is_not_there_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CaptionTask, "metrics", ("exact_match", "cidre"))
    with pytest.raises(ConfigError, match=r"data.task=caption: metric='cidre': .* did you mean cider\?"):
        build_task("caption", RunConfig(), cast(Tokenizer, None))


def test_a_model_whose_task_is_not_loaded_speaks_and_is_not_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its recipe may name a plugin, which nothing imports from a checkpoint."""
    known = open_checkpoint(write_taught(tmp_path / "taught"))
    data = known.run.data.model_copy(update={"task": "counting"})
    run = known.run.model_copy(update={"plugins": ("my_counting_task",), "data": data})
    folder = tmp_path / "counting"
    export_native(replace(known, run=run), folder)
    (tmp_path / "my_counting_task.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    model = git_scale.load(folder, device="cpu")
    assert model.caption(draw_square("red", "big")) == ["a big red square"]
    assert "my_counting_task" not in sys.modules
    opened = open_checkpoint(folder)
    with pytest.raises(ConfigError) as caught:
        evaluation_run(opened, Path("heldout"), None, [])
    missing, remedy = caught.value.problems
    assert missing.startswith("data.task='counting': there is none of that name; there are caption, vqa")
    assert remedy.startswith(
        "plugins=['my_counting_task'] stand in the checkpoint's recipe and are not imported"
    )
    assert remedy.endswith("if you trust them, give plugins=[my_counting_task]")
    assert (
        evaluation_run(opened, Path("heldout"), "caption", ["eval.max_new_tokens=8"]).data.task == "caption"
    )
    with pytest.raises(ConfigError, match="RuntimeError: imported"):
        evaluation_run(opened, Path("heldout"), None, ["plugins=[my_counting_task]"])


class WithoutNeeds(CaptionTask):
    metrics = "cider"  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (WithoutNeeds, r"metrics = 'cider' is a text: names are given as \('cider',\)"),
        (type("Incomplete", (Task,), {}), r"Incomplete does not say queries, .*, learns_from, asks_about"),
        (int, r"is no subclass of git_scale\.tasks\.task\.Task"),
    ],
)
def test_a_task_with_a_flaw_is_refused_where_it_is_named(
    monkeypatch: pytest.MonkeyPatch, entry: Any, said: str
) -> None:
    monkeypatch.setattr(TASKS, "_added", {"mine": entry})
    with pytest.raises(ConfigError, match=said):
        load_run("demo", ["data.task=mine"])
    load_run("demo", ["data.task=caption"])
