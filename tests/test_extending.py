"""docs/extending.md does what it says: its code is written to modules of their own, and runs name them as plugins."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset
import yaml
from PIL import Image

from git_scale.checkpoint import layout
from git_scale.data.store import open_store
from git_scale.errors import ConfigError
from git_scale.parallel.topology import Topology
from git_scale.stop import StopRequest
from git_scale.testing.curves import Curve, assert_same_curve, curve_of
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import COLOURS, SIDES, draw_square, tiny_run

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
PLUGINS = ("colour_task", "worst_class")
TINY_VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def code_blocks(page: str, heading: str) -> Iterator[str]:
    """The Python below a heading, up to the next one of its level."""
    level, _, _ = heading.partition(" ")
    section = re.search(rf"^{re.escape(heading)}$(.*?)(?=^{level} |\Z)", page, re.MULTILINE | re.DOTALL)
    assert section, f"{heading}: no such heading"
    yield from re.findall(r"^```python\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)


def write_plugin(folder: Path, heading: str, module: str) -> None:
    (code,) = code_blocks(PAGE.read_text(encoding="utf-8"), heading)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 40, "an example is read at a glance"
    (folder / f"{module}.py").write_text(code, encoding="utf-8")


def test_each_example_is_read_at_a_glance() -> None:
    sections = PAGE.read_text(encoding="utf-8").split("\n## ")[1:]
    assert len(sections) == 7
    assert all(len(section.strip().splitlines()) <= 60 for section in sections)


def test_blocks_are_read_up_to_the_next_heading() -> None:
    a, b, c, d = (f"```python\n{name}\n```\n" for name in "abcd")
    page = f"# P\n{a}## One\n```\nno Python\n```\n{b}### Part\n{c}## Two\n{d}"
    assert list(code_blocks(page, "## One")) == ["b\n", "c\n"]
    assert list(code_blocks(page, "## Two")) == ["d\n"]
    with pytest.raises(AssertionError, match="no such heading"):
        list(code_blocks(page, "## Three"))


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    folder = tmp_path / "plugins"
    folder.mkdir()
    write_plugin(folder, "## A task", "colour_task")
    write_plugin(folder, "## A metric", "worst_class")
    return folder


def write_coloured(folder: Path, count: int) -> Path:
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "coloured-000000.tar"), encoder=False) as tar:
        for number in range(count):
            colour, side = list(COLOURS)[number % 4], list(SIDES)[number % 3]
            text = json.dumps({"colour": colour}).encode()
            tar.write({"__key__": f"{number:03d}", "png": draw_square(colour, side), "json": text})
    return folder


def write_recipe(squares: Path, tmp_path: Path, world_size: int) -> Path:
    run = tiny_run(
        squares,
        tmp_path / "run",
        data={
            "train": str(write_coloured(tmp_path / "train", 24)),
            "heldout": str(write_coloured(tmp_path / "heldout", 7)),
            "task": "colour",
        },
        train={"steps": 6, "micro_batch": 8 // world_size},
        eval={"every": 3},
        checkpoint={"every": 3, "best": "worst_class"},
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(run.model_copy(update={"plugins": PLUGINS}).to_yaml(), encoding="utf-8")
    return path


Said = list[tuple[str, str, list[str]]]


def fit(
    topology: Topology, device: torch.device, plugins: Path, recipe: Path, stage: int
) -> tuple[Said, dict[str, float]]:
    from git_scale.recipes import load_run
    from git_scale.training.build import build_trainer

    sys.path.append(str(plugins))
    trainer = build_trainer(load_run(str(recipe)), {"zero_optimization": {"stage": stage}}, topology, device)
    trainer.fit(StopRequest())
    trainer.writer.close()
    evaluation = trainer.evaluations.evaluators[""].evaluate(trainer.engine)
    return [
        (item.key, item.generated, item.references) for item in evaluation.predictions
    ], evaluation.metrics


def evaluate(
    topology: Topology, device: torch.device, plugins: Path, tmp_path: Path, task: str | None, names: str
) -> tuple[Said, list[dict[str, Any]]]:
    """In processes of their own, as tools/evaluate.py is."""
    from git_scale.evaluation.checkpoint_evaluation import evaluate_checkpoint

    sys.path.append(str(plugins))
    given = [f"plugins=[{names}]"] if names else []
    heldout = tmp_path / "heldout"
    evaluation = evaluate_checkpoint(tmp_path / "run", heldout, task, None, given, {}, topology)
    said = [(item.key, item.generated, item.references) for item in evaluation.predictions]
    return said, evaluation.results


def worst_by_hand(said: Said) -> float:
    of_colour = {colour: [text for _, text, right in said if right == [colour]] for colour in COLOURS}
    return min(texts.count(colour) / len(texts) for colour, texts in of_colour.items())


@pytest.mark.distributed
@pytest.mark.parametrize(("world_size", "stage"), [(1, 0), (2, 3)])
def test_a_task_with_choices_and_a_metric_of_its_own_train_and_evaluate(
    squares: Path, tmp_path: Path, plugins: Path, world_size: int, stage: int
) -> None:
    recipe = write_recipe(squares, tmp_path, world_size)
    answers = run_distributed(fit, world_size, plugins, recipe, stage)
    said, metrics = answers[0]
    assert all(answer == answers[0] for answer in answers)
    assert len(said) == 7 and {text for _, text, _ in said} <= set(COLOURS), "nothing but a choice is said"
    assert metrics["eval/worst_class"] == worst_by_hand(said)
    assert {"eval/exact_match", "eval/loss", "eval/texts"} <= metrics.keys() and "eval/cider" not in metrics
    best = layout.read_best(tmp_path / "run")
    assert best is not None and best.metric == "worst_class"
    assert (tmp_path / "run" / "checkpoints" / "best").exists()

    names = ",".join(PLUGINS)
    again, rows = run_distributed(evaluate, world_size, plugins, tmp_path, None, names)[0]
    assert again == said
    assert rows == [{"image": key, "colour": text} for key, text, _ in said]
    captions, _ = run_distributed(evaluate, 1, plugins, tmp_path, "caption", "")[0]
    assert not {text for _, text, _ in captions} <= set(COLOURS), "left alone it says other things"


def refused(
    topology: Topology, device: torch.device, plugins: Path, recipe: Path, override: str
) -> list[str]:
    from git_scale.recipes import load_run
    from git_scale.training.build import build_trainer

    sys.path.append(str(plugins))
    try:
        build_trainer(load_run(str(recipe), [override]), {}, topology, device)
    except ConfigError as error:
        return error.problems
    return []


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("override", "problem"),
    [
        (
            "data.task=color",
            "did you mean colour?; there are caption, vqa, classification",
        ),
        (
            "checkpoint.best=cider",
            "checkpoint.best='cider': with data.task=colour it is one of exact_match, worst_class, loss",
        ),
        ("plugins=[colour_task]", "data.task=colour: metric='worst_class': there is none of that name"),
        (
            "data.train={squares}",
            "has colours, for data.task=colour; they have captions: set data.task=caption, or",
        ),
    ],
)
def test_what_does_not_fit_a_plugins_task_is_said_before_the_start(
    squares: Path, tmp_path: Path, plugins: Path, override: str, problem: str
) -> None:
    recipe = write_recipe(squares, tmp_path, 1)
    override = override.format(squares=squares / "train")
    problems = run_distributed(refused, 1, plugins, recipe, override)[0]
    assert len(problems) == 1 and problem in problems[0], problems


def write_small(squares: Path, tmp_path: Path, name: str, plugin: str, sections: dict[str, Any]) -> Path:
    """A recipe of the tiny run with a plugin of this page."""
    run = tiny_run(squares, tmp_path / name, **sections)
    path = tmp_path / f"{name}.yaml"
    path.write_text(run.model_copy(update={"plugins": (plugin,)}).to_yaml(), encoding="utf-8")
    return path


def curve_with(
    topology: Topology, device: torch.device, plugins: Path, recipe: Path, stage: int
) -> tuple[Curve, dict[str, float]]:
    from git_scale.recipes import load_run
    from git_scale.training.build import build_trainer

    sys.path.append(str(plugins))
    trainer = build_trainer(load_run(str(recipe)), {"zero_optimization": {"stage": stage}}, topology, device)
    curve = curve_of(trainer, 3)
    return curve, trainer.meters.report(3, learning_rates={}, skipped_steps=0, data_skipped=0)


@pytest.mark.distributed
def test_an_objective_learns_alike_on_any_ranks(squares: Path, tmp_path: Path) -> None:
    write_plugin(tmp_path, "## An objective", "z_loss")
    train = {"objectives": {"lm": 1.0, "z_loss": 0.05}, "micro_batch": 8}
    alone = write_small(squares, tmp_path, "alone", "z_loss", {"train": train})
    plain = write_small(squares, tmp_path, "plain", "z_loss", {"train": train | {"objectives": {"lm": 1.0}}})
    ((serial, logged),) = run_distributed(curve_with, 1, tmp_path, alone, 0)
    ((other, _),) = run_distributed(curve_with, 1, tmp_path, plain, 0)
    assert serial[0][0] > other[0][0] + 0.05, "it weighs something"
    assert logged["train/loss"] == pytest.approx(logged["train/loss_lm"] + logged["train/loss_z_loss"])
    for name, stage, change in (
        ("shared", 3, {"train": train | {"micro_batch": 2}}),
        ("split", 1, {"train": train, "parallel": {"tp": 2}}),
    ):
        recipe = write_small(squares, tmp_path, name, "z_loss", change)
        for curve, _ in run_distributed(curve_with, 2, tmp_path, recipe, stage, tp=1 + (name == "split")):
            assert_same_curve(curve, serial)


@pytest.mark.distributed
def test_an_encoder_family_of_ones_own_is_divided(squares: Path, tmp_path: Path) -> None:
    write_plugin(tmp_path, "## An encoder family under tensor parallelism", "gated_vit")
    encoder = {"name": "gated_vit", "image_size": 32, "options": TINY_VIT}
    for name, tp in (("alone", 1), ("split", 2)):
        sections = {"train": {"micro_batch": 8}, "parallel": {"tp": tp}}
        recipe = write_small(squares, tmp_path, name, "gated_vit", sections)
        tree = yaml.safe_load(recipe.read_text())
        tree["model"]["encoder"] |= encoder
        recipe.write_text(yaml.safe_dump(tree))
    ((serial, _),) = run_distributed(curve_with, 1, tmp_path, tmp_path / "alone.yaml", 0)
    assert serial[-1][0] < serial[0][0]
    for curve, _ in run_distributed(curve_with, 2, tmp_path, tmp_path / "split.yaml", 3, tp=2):
        assert_same_curve(curve, serial)


@pytest.mark.distributed
def test_without_its_rule_it_is_refused(squares: Path, tmp_path: Path) -> None:
    write_plugin(tmp_path, "## An encoder family under tensor parallelism", "gated_vit")
    module = tmp_path / "gated_vit.py"
    module.write_text(module.read_text().partition("add_rule(")[0])
    recipe = write_small(squares, tmp_path, "split", "gated_vit", {"parallel": {"tp": 2}})
    tree = yaml.safe_load(recipe.read_text())
    tree["model"]["encoder"] |= {"name": "gated_vit", "options": TINY_VIT}
    recipe.write_text(yaml.safe_dump(tree))
    (problems, _) = run_distributed(refused, 2, tmp_path, recipe, "train.steps=9", tp=2)
    assert any(
        "no rule says how to split encoder.backbone.blocks.0.mlp.gate" in problem for problem in problems
    )


def test_a_format_of_ones_own_is_built_from(tmp_path: Path) -> None:
    write_plugin(tmp_path, "## A data format", "beside")
    folder = tmp_path / "photos" / "more"
    folder.mkdir(parents=True)
    for name, texts in (("a", "a red square\na square\n"), ("b", "a blue square"), ("c", None)):
        Image.new("RGB", (32, 32), "red").save(folder / f"{name}.jpg")
        if texts is not None:
            (folder / f"{name}.txt").write_text(texts)
    tool = PAGE.parents[1] / "tools" / "prepare_data.py"
    given = [
        "--plugins",
        "beside",
        "beside",
        str(tmp_path / "photos"),
        str(tmp_path / "shards"),
        "--workers",
        "1",
    ]
    environment = {**os.environ, "PYTHONPATH": f"{PAGE.parents[1]}"}
    built = subprocess.run(  # from the working directory
        [sys.executable, tool, *given], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    assert "no readable .txt beside it" in built.stdout
    store = open_store(tmp_path / "shards")
    assert [store.read_text(number).captions for number in range(len(store))] == [
        ["a red square", "a square"],
        ["a blue square"],
    ]
    unknown = subprocess.run(
        [sys.executable, tool, *given[2:]], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert unknown.returncode == 2 and "beside" in unknown.stderr


@pytest.mark.distributed
def test_a_schedule_of_ones_own_moves_the_rates(squares: Path, tmp_path: Path) -> None:
    write_plugin(tmp_path, "## A schedule", "inverse_root")
    sections = {"optimizer": {"schedule": "inverse_root", "warmup_steps": 2, "decoder_lr": 1e-3}}
    recipe = write_small(squares, tmp_path, "own", "inverse_root", sections)
    (rates,) = run_distributed(rates_of, 1, tmp_path, recipe)
    assert rates == pytest.approx([1e-3 * factor for factor in (0.5, 1.0, (2 / 3) ** 0.5, 0.5**0.5)])


def rates_of(topology: Topology, device: torch.device, plugins: Path, recipe: Path) -> list[float]:
    """The decoder's in four steps."""
    from git_scale.recipes import load_run
    from git_scale.training.build import build_trainer

    sys.path.append(str(plugins))
    trainer = build_trainer(load_run(str(recipe)), {}, topology, device)
    rates = []
    for _ in range(4):
        trainer.train_step()
        trainer.step += 1
        rates.append(trainer.engine.tower_learning_rates()["decoder"])
    return rates


@pytest.mark.distributed
def test_a_source_of_ones_own_is_trained_on(squares: Path, tmp_path: Path) -> None:
    write_plugin(tmp_path, "## A source of samples", "csv_folder")
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = [(colour, side) for colour in COLOURS for side in SIDES]
    for colour, side in rows:
        (folder / f"{colour}-{side}.png").write_bytes(draw_square(colour, side))
    lines = [f"{colour}-{side}.png,a {side} {colour} square\n" for colour, side in rows]
    (folder / "captions.csv").write_text("".join([*lines, "gone.png,a black square\n"]))
    sections = {"data": {"train": str(folder), "max_bad_share": 1.0}, "train": {"micro_batch": 4}}
    recipe = write_small(squares, tmp_path, "own", "csv_folder", sections)
    found = run_distributed(seen, 2, tmp_path, recipe)
    keys = [key for _, batches in found for key in batches]
    assert {key.partition(":")[0] for key in keys} == {"captions.csv"}
    assert len(keys) == 2 * 3 * 4
    assert found[0][0] == found[1][0] > 0, "the image that is not there was counted on all ranks"


def seen(topology: Topology, device: torch.device, plugins: Path, recipe: Path) -> tuple[int, list[str]]:
    """Samples that could not be used, and the keys that this rank was given in three steps."""
    from git_scale.recipes import load_run
    from git_scale.training.build import build_trainer

    sys.path.append(str(plugins))
    trainer = build_trainer(load_run(str(recipe)), {}, topology, device)
    batches = list(islice(trainer._batches, 3))
    trainer._batches = iter(batches)
    for _ in batches:
        trainer.train_step()
        trainer.step += 1
    return trainer.bad_samples, [key for batch in batches for key in batch.keys]
