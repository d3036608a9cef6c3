"""Which runs a study's file asks for, and what is wrong with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from git_scale.errors import ConfigError
from git_scale.studies.study import (
    STUDIES,
    all_runs,
    chains,
    command_of,
    judged_runs,
    overrides_of,
    read_study,
)

TREE: dict[str, Any] = {
    "recipe": "demo",
    "score": "exact_match",
    "overrides": ["train.steps=8", "log.every=4"],
    "axes": {
        "attention": {"joint": [], "cross": ["model.decoder.attention=cross"]},
        "data": {"all": [], "1/16": ["data.share=0.0625"]},
        "objective": {"next words": [], "masked words": ["train.objective=masked_lm"]},
    },
    "grids": [
        {"values": {"attention": ["joint", "cross"], "data": ["all", "1/16"]}},
        {"values": {"objective": ["next words", "masked words"]}, "finetuned": True},
    ],
    "seeds": [0, 3],
    "finetuning": ["train.objective=lm", "train.steps=2"],
}


def written(folder: Path, **changed: Any) -> str:
    path = folder / "asked.yaml"
    path.write_text(yaml.safe_dump({**TREE, **changed}, sort_keys=False))
    return str(path)


def test_each_setting_runs_once_for_each_seed(tmp_path: Path) -> None:
    study = read_study(written(tmp_path))
    assert [run.name for run in judged_runs(study) if run.seed == 3] == [
        "joint-all-next_words-seed3",
        "joint-1_16-next_words-seed3",
        "cross-all-next_words-seed3",
        "cross-1_16-next_words-seed3",
        "joint-all-next_words-finetuned-seed3",
        "joint-all-masked_words-finetuned-seed3",
    ]
    assert len(judged_runs(study)) == 12


def test_a_run_comes_behind_the_one_that_it_goes_on_from(tmp_path: Path) -> None:
    study = read_study(written(tmp_path))
    names = [run.name for run in all_runs(study)]
    assert len(names) == len(set(names)) == 14  # that of masked words is no setting, but needed
    for run in judged_runs(study):
        assert names.index(run.start.name) <= names.index(run.name)


def test_jobs_of_an_array_need_nothing_of_one_another(tmp_path: Path) -> None:
    found = chains(read_study(written(tmp_path)))
    assert [len(chain) for chain in found] == 2 * [2, 1, 1, 1, 2]
    assert all(run.start == chain[0] for chain in found for run in chain)
    assert len({run for chain in found for run in chain}) == 14


def test_the_last_word_on_a_key_counts(tmp_path: Path) -> None:
    study = read_study(written(tmp_path))
    *_, masked = judged_runs(study)
    folder = tmp_path / "runs"
    assert overrides_of(study, masked, folder, ["log.every=1"]) == [
        "train.objective=lm",
        "train.steps=2",
        "log.every=1",
        "seed=3",
        f"run_dir={folder}/joint-all-masked_words-finetuned-seed3",
        f"init_from={folder}/joint-all-masked_words-seed3",
    ]
    assert command_of(study, masked, folder)[:3] == ["tools/finetune.py", "--config", "demo"]
    assert command_of(study, masked.start, folder)[0] == "tools/pretrain.py"
    assert "train.objective=masked_lm" in command_of(study, masked.start, folder)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"grids": [{"values": {"attenton": ["joint"]}}]},
            "axis 'attenton' is unknown; did you mean attention",
        ),
        ({"grids": [{"values": {"data": ["half"]}}]}, "grids: data 'half' is unknown; there are all, 1/16"),
        ({"finetuning": []}, "finetuned=true, but finetuning has no overrides"),
        ({"size_axis": "encoder"}, "axis 'encoder' is unknown"),
        ({"axes": {"a": {"1/2": [], "1 2": []}}, "grids": [{"values": {}}]}, "differ in more than signs"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "each seed once"),
        ({"grid": []}, "grid"),
        ({"grids": [{"values": {"data": []}}]}, "grids.0.values.data"),
        ({"grids": [{"values": {"data": ["1/16"]}}]}, "axes.attention: no grid has cross"),
        ({"overrides": ["log.every=1\nx"]}, "an override stands on one line"),
        ({"axes": {"a": {"b|c": []}}, "grids": [{"values": {}}]}, "has no | \\$ or end of a line"),
        ({"axes": []}, "axes"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_study(written(tmp_path, **changed))


def test_names_and_overrides_are_text_whatever_they_look_like(tmp_path: Path) -> None:
    path = tmp_path / "asked.yaml"
    path.write_text(
        "recipe: demo\nscore: cider\naxes: {width: {128: [], 256: [a=1]}, ema: {off: [], on: []}}\n"
        "grids: [{values: {width: [128, 256], ema: [off, on]}}]\noverrides: [1, yes]\n"
    )
    study = read_study(str(path))
    assert [run.values for run in judged_runs(study)][1:3] == [("128", "on"), ("256", "off")]
    assert study.overrides == ["1", "yes"]


def test_an_empty_file_is_no_study(tmp_path: Path) -> None:
    (tmp_path / "asked.yaml").write_text("")
    with pytest.raises(ConfigError, match="a study is a mapping"):
        read_study(str(tmp_path / "asked.yaml"))


def test_of_a_key_that_is_given_again_the_place_counts_too(tmp_path: Path) -> None:
    """A section given whole, then a key within it."""
    name, whole = "model.encoder.options.stem_width", "model.encoder.options={stem_width: 24}"
    study = read_study(written(tmp_path, overrides=[f"{name}=16", whole]))
    run = judged_runs(study)[0]
    assert overrides_of(study, run, tmp_path, [f"{name}=8"])[:2] == [whole, f"{name}=8"]


def test_an_unknown_study_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="ablatons: no such study or file; did you mean ablations"):
        read_study("ablatons")


@pytest.mark.parametrize("name", sorted(path.stem for path in STUDIES.glob("*.yaml")))
def test_all_runs_of_a_shipped_study_see_the_same_number_of_samples(name: str, tmp_path: Path) -> None:
    from git_scale.studies.study_folder import StudyFolder

    here = StudyFolder(name, tmp_path, [])
    for finetuned in (False, True):
        assert len({here.samples_of(run) for run in here if run.finetuned == finetuned}) <= 1
    for recipe in here.recipes.values():
        assert recipe.eval.every and recipe.train.steps % recipe.eval.every == 0
