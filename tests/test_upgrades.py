"""Recipes of every version are read, and none of a later one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from git_scale import upgrades
from git_scale.checkpoint import layout
from git_scale.config import RunConfig
from git_scale.errors import ConfigError
from git_scale.recipes import load_run
from git_scale.training.run_folder import read_recipe
from git_scale.upgrades import VERSION, upgraded
from tools import plan

LATER = f"version={VERSION + 1}: written by a later git_scale, this one reads recipes up to version {VERSION}"


def write(folder: Path, tree: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def test_a_recipe_without_a_version_is_of_the_first() -> None:
    old = {"model": {"encoder": {"pretrained": True, "name": "resnet18"}}}
    tree, changes = upgraded(old)
    assert tree == {"version": VERSION, "model": {"encoder": {"start": "timm", "name": "resnet18"}}}
    assert changes == ["model.encoder.pretrained is read as model.encoder.start=timm"]
    assert old == {"model": {"encoder": {"pretrained": True, "name": "resnet18"}}}
    assert upgraded({"version": 1, **old}) == (tree, changes)


def test_a_recipe_of_this_version_stays_as_it_is() -> None:
    tree = {
        "version": VERSION,
        "model": {"encoder": {"pretrained": True}},
    }  # which this version does not know
    assert upgraded(tree) == (tree, [])
    with pytest.raises(ValueError, match="pretrained"):
        RunConfig.model_validate(tree)


@pytest.mark.parametrize(
    "present", [RunConfig().model_dump(mode="json"), {"model": None}, {"model": [1]}, {}]
)
def test_a_step_leaves_what_is_not_its_own(present: dict[str, Any]) -> None:
    without = {key: value for key, value in present.items() if key != "version"}
    assert upgraded(without) == ({**without, "version": VERSION}, [])


def test_steps_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(old: str, new: str) -> Any:
        def step(tree: dict[str, Any]) -> Any:
            if old in tree:
                tree[new] = tree.pop(old)
                yield f"{old} is {new} now"

        return step

    monkeypatch.setattr(upgrades, "STEPS", (renamed("a", "b"), renamed("b", "c")))
    monkeypatch.setattr(upgrades, "VERSION", 3)
    assert upgraded({"a": 7}) == ({"c": 7, "version": 3}, ["a is b now", "b is c now"])
    assert upgraded({"version": 2, "a": 7, "b": 8}) == ({"a": 7, "c": 8, "version": 3}, ["b is c now"])
    assert upgraded({"version": 3, "a": 7}) == ({"a": 7, "version": 3}, [])


@pytest.mark.parametrize("version", [0, -1, True, "2", 1.0, None, [2]])
def test_a_version_that_is_none_is_refused(version: Any) -> None:
    with pytest.raises(ConfigError, match=f"mine: version=.*: a whole number from 1 to {VERSION} is needed"):
        upgraded({"version": version}, "mine")


def test_what_a_run_writes_says_its_version() -> None:
    text = RunConfig().to_yaml()
    assert text.startswith(f"version: {VERSION}\n")
    assert RunConfig.model_validate(yaml.safe_load(text)) == RunConfig()


def test_a_later_recipe_is_refused_with_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write(tmp_path, {"version": VERSION + 1, "a_key_of_later": 3})
    with pytest.raises(ConfigError) as refused:
        load_run(str(recipe))
    assert refused.value.problems == [f"{recipe}: {LATER}: update it"]
    assert plan.main(["--config", str(recipe)]) == 2
    assert LATER in capsys.readouterr().err


def test_an_override_of_an_earlier_version_is_read(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        run = load_run("git_base", ["model={encoder: {pretrained: true, image_size: 224}}", "version=1"])
    assert (run.model.encoder.start, run.model.encoder.image_size, run.version) == ("timm", 224, VERSION)
    assert "model.encoder.pretrained is read as model.encoder.start=timm" in caplog.text
    with pytest.raises(ConfigError, match=LATER):
        load_run("git_base", [f"version={VERSION + 1}"])


def test_the_folder_of_a_later_run_is_not_damaged(tmp_path: Path) -> None:
    later = RunConfig().model_dump(mode="json") | {"version": VERSION + 1}
    config = write(tmp_path, later)
    for read in (read_recipe, lambda path: layout.read_config(path.parent)):
        with pytest.raises(ConfigError) as refused:
            read(config)
        assert refused.value.problems == [f"{config}: {LATER}: update it"]
    write(tmp_path, later | {"version": 1})
    assert read_recipe(config) == RunConfig()
