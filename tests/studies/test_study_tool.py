"""A study from its command to its table, stopped between two runs, and on runs whose outcome is known."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from git_scale.data.images import decode
from git_scale.data.store import open_store
from git_scale.data.tokenizer import load_tokenizer
from git_scale.errors import ConfigError, DataError, UserError
from git_scale.studies.outcomes import tokens_per_word
from git_scale.studies.study import StudyRun
from git_scale.studies.study_folder import StudyFolder
from git_scale.testing.tiny import tiny_run
from tools.study import main

ROOT = Path(__file__).parents[2]
STEPS, AFTER, BATCH = 4, 2, 8


def a_study(squares: Path, folder: Path, **changed: Any) -> str:
    recipe = folder / "squares.yaml"
    recipe.write_text(
        tiny_run(squares, folder / "unused", eval={"every": 2}, train={"steps": STEPS}).to_yaml()
    )
    tree = {
        "recipe": str(recipe),
        "score": "exact_match",
        "axes": {
            "objective": {"next": [], "masked": ["train.objectives={masked_lm: 1.0}"]},
            "data": {"all": [], "half": ["data.share=0.5"]},
        },
        "grids": [
            {"values": {"data": ["all", "half"]}},
            {"values": {"objective": ["masked"]}, "finetuned": True},
        ],
        "finetuning": ["train.objectives={lm: 1.0}", f"train.steps={AFTER}", "optimizer.warmup_steps=1"],
        "seeds": [0, 1],
        "data_axis": "data",
        **changed,
    }
    path = folder / "asked.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return str(path)


def ended(here: StudyFolder, run: StudyRun, score: float, loss: float | None = 1.0) -> None:
    """Writes what the run leaves behind."""
    recipe = here.recipes[run]
    home = Path(recipe.run_dir)
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.yaml").write_text(recipe.to_yaml())
    steps = range(2, recipe.train.steps + 1, 2)
    lines = [
        {"step": step, "eval/exact_match": score * step / recipe.train.steps, "eval/loss": loss}
        for step in steps
    ]
    (home / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_means_and_spread_over_the_seeds(squares: Path, tmp_path: Path) -> None:
    here = StudyFolder(a_study(squares, tmp_path), tmp_path, [])
    for run in here:
        ended(here, run, score={"all": 0.6, "half": 0.4}[run.values[1]] + 0.2 * run.seed, loss=0.5 + run.seed)
    header, rows = here.table()
    per_word = tokens_per_word(next(iter(here.recipes.values())))
    nats = f"{per_word:.3f} ({0.5 * per_word:.3f} to {1.5 * per_word:.3f})"
    assert header == [
        "objective",
        "data",
        "fine-tuned",
        "samples seen",
        "nats per word",
        "exact match",
        "seeds",
    ]
    assert rows == [
        ["next", "all", "no", "32", nats, "0.700 (0.600 to 0.800)", "2"],
        ["next", "half", "no", "32", nats, "0.500 (0.400 to 0.600)", "2"],
        ["masked", "all", "yes", "48", nats, "0.700 (0.600 to 0.800)", "2"],
    ]
    assert [point.samples for point in here.outcomes[2].points] == [
        32 + BATCH * 2
    ]  # behind those of its start
    assert [one.training_samples for one in here.outcomes] == [40, 20, 40] * 2


def test_a_word_costs_its_tokens_and_its_share_of_the_end(squares: Path, tmp_path: Path) -> None:
    """Against the pieces that the tokenizer says, of the captions as they stand in the shards."""
    run = tiny_run(squares, tmp_path / "run", data={"texts_per_image": 2, "max_text_tokens": 30})
    tokenizer, store = load_tokenizer(squares / "tokenizer.model"), open_store(squares / "heldout")
    captions = [text for number in range(len(store)) for text in store.read_text(number).captions]
    tokens = sum(len(tokenizer.encode(text)) + 1 for text in captions)
    assert tokens_per_word(run) == pytest.approx(tokens / sum(len(text.split()) for text in captions))


def test_pictures_are_pictures(squares: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    here = StudyFolder(a_study(squares, tmp_path), tmp_path, [])
    for run in here:
        ended(here, run, score=0.5)
    report = here.write_report()
    assert {path.name for path in report.iterdir()} == {
        "results.json",
        "results.md",
        "curves.png",
        "scaling.png",
    }
    for name in ("curves.png", "scaling.png"):
        assert decode((report / name).read_bytes()).size[0] > 500
    written = json.loads((report / "results.json").read_text())
    assert len(written["runs"]) == 6 and written["missing"] == []


def test_runs_that_have_not_ended_are_named(squares: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    here = StudyFolder(a_study(squares, tmp_path), tmp_path, [])
    for run in here:
        if run.seed == 0:
            ended(here, run, score=0.5)
    assert here.missing == ["next-all-seed1", "next-half-seed1", "masked-all-finetuned-seed1"]
    report = here.write_report()
    assert "Not ended: next-all-seed1, next-half-seed1" in (report / "results.md").read_text()
    assert {row[-1] for row in here.table()[1]} == {"1"}


def test_a_run_that_diverged_is_told_and_the_others_too(squares: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    here = StudyFolder(a_study(squares, tmp_path), tmp_path, [])
    for run in here:
        ended(here, run, score=0.5, loss=None if run.name == "next-all-seed1" else 1.0)
    (first, *others) = here.table()[1]
    assert first[-3:] == ["1 of 2 diverged", "0.500 (0.500 to 0.500)", "2"]
    assert "diverged" not in str(others)
    (report,) = {here.write_report()}
    json.loads(
        (report / "results.json").read_text(), parse_constant=lambda name: pytest.fail(f"no JSON: {name}")
    )


def test_seeds_that_were_evaluated_at_other_steps_are_drawn_where_both_were(
    squares: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    here = StudyFolder(a_study(squares, tmp_path), tmp_path, [])
    for run in here:
        ended(here, run, score=0.346)
    lost = tmp_path / "asked" / "next-all-seed1" / "metrics.jsonl"
    lost.write_text(lost.read_text().splitlines()[-1] + "\n")
    assert [len(one.points) for one in here.outcomes] == [2, 2, 1, 1, 2, 1]
    assert here.write_report().is_dir()


def test_a_last_evaluation_without_the_score_is_named(squares: Path, tmp_path: Path) -> None:
    here = StudyFolder(a_study(squares, tmp_path), tmp_path, [])
    run = next(iter(here))
    ended(here, run, score=0.5)
    with (tmp_path / "asked" / run.name / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 4, "eval/loss": 1.0}) + "\n")
    lines = (tmp_path / "asked" / run.name / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "asked" / run.name / "metrics.jsonl").write_text("\n".join([lines[0], lines[2]]) + "\n")
    with pytest.raises(DataError, match="next-all-seed0: its last evaluation has no eval/exact_match"):
        _ = here.outcomes


def test_a_run_with_other_values_in_its_place_is_not_taken_for_it(squares: Path, tmp_path: Path) -> None:
    study = a_study(squares, tmp_path)
    before = StudyFolder(study, tmp_path, ["optimizer.clip_norm=2"])
    run = next(iter(before))
    ended(before, run, score=0.5)
    assert before.has_ended(run)
    with pytest.raises(ConfigError, match=r"other values lies here \(optimizer.clip_norm\)"):
        StudyFolder(study, tmp_path, []).has_ended(run)


def test_nothing_to_report(squares: Path, tmp_path: Path) -> None:
    here = StudyFolder(a_study(squares, tmp_path), tmp_path, [])
    assert not any(map(here.has_ended, here))
    with pytest.raises(UserError, match="none of the study's runs has ended"):
        here.write_report()


def test_mistakes_of_all_runs_are_said_once_before_any_begins(squares: Path, tmp_path: Path) -> None:
    study = a_study(squares, tmp_path)
    with pytest.raises(ConfigError) as refused:
        StudyFolder(study, tmp_path, ["data.shar=1"])
    assert refused.value.problems == [
        "data.shar=1: unknown key; did you mean data.share? (next-all-seed0 and 5 more)"
    ]


@pytest.mark.parametrize(
    ("changed", "override", "said"),
    [
        (
            {"score": "exact_mach"},
            "log.every=5",
            "score='exact_mach': with data.task=caption it is one of .*did you mean",
        ),
        ({}, "data.heldout=null", "data.heldout is not set, and a study compares held-out scores"),
        ({}, "seed=7", "seed: a study sets it itself in each run"),
        ({}, "init_from=runs/x", "init_from: a study sets it itself"),
        ({}, "data.share=0.25", "next-half-seed0 and next-all-seed0 are the same run"),
    ],
)
def test_what_could_not_be_compared_is_refused(
    squares: Path, tmp_path: Path, changed: dict[str, Any], override: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        StudyFolder(a_study(squares, tmp_path, **changed), tmp_path, [override])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.micro_batch=3", "no multiple of train.micro_batch=3 x 2 ranks"),
        ("data.train=nowhere", "nowhere"),
        ("model.encoder.options.chanels=[1]", "chanels"),
        ("model.vocab_size=99", "model.vocab_size=99, but"),
    ],
)
def test_what_a_later_run_would_be_refused_for_is_said_before_the_first(
    squares: Path, tmp_path: Path, override: str, said: str
) -> None:
    axes = {"objective": {"next": [], "masked": [override]}}
    grids = [{"values": {"objective": ["next", "masked"]}}]
    here = StudyFolder(a_study(squares, tmp_path, axes=axes, grids=grids, data_axis=None), tmp_path, [])
    with pytest.raises(ConfigError, match=rf"{re.escape(said)}.*\(masked-seed0 and 1 more\)"):
        here.check(here, processes=2)


def test_the_commands_of_an_array_are_those_that_are_left(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = a_study(squares, tmp_path)
    asked = [study, "--runs", f"{tmp_path}/a b", "data.image_sizes=[32, 48]"]
    here = StudyFolder(study, tmp_path / "a b", ["data.image_sizes=[32, 48]"])
    first, second = map(here.command_of, here.chains[2])
    assert main([*asked, "--commands", "2"]) == 0
    assert [shlex.split(line) for line in capsys.readouterr().out.splitlines()] == [first, second]
    ended(here, here.chains[2][0], score=0.5)
    assert main([*asked, "--commands", "2"]) == 0
    assert [shlex.split(line) for line in capsys.readouterr().out.splitlines()] == [second]
    assert main([*asked, "--commands", "6"]) == 2
    assert "jobs 0 to 5" in capsys.readouterr().err
    assert main([*asked, "--list"]) == 0
    line = f"sbatch --array=0-5 slurm/study.sh {study} --runs '{tmp_path}/a b' 'data.image_sizes=[32, 48]'"
    assert line in capsys.readouterr().out


def bare_recipe(folder: Path) -> str:
    """One that leaves the model to the checkpoint that a run starts from."""
    path = folder / "bare.yaml"
    lengths = "data: {max_text_tokens: 16}\neval: {max_new_tokens: 8}\n"
    path.write_text(f"{lengths}optimizer: {{warmup_steps: 1}}\ntrain: {{steps: 4}}\n")
    return str(path)


@pytest.mark.distributed
def test_a_study_runs_what_has_not_ended(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Masked words, then next words from there; the same command finds nothing left to run."""
    pytest.importorskip("matplotlib")
    axes = {"objective": {"next": [], "masked": ["train.objectives={masked_lm: 1.0}"]}, "data": {"all": []}}
    grids = [{"values": {"objective": ["masked"]}, "finetuned": True}]
    study = a_study(squares, tmp_path, axes=axes, grids=grids, seeds=[5])
    command = [study, "--runs", str(tmp_path / "runs")]
    done = subprocess.run(
        [sys.executable, "tools/study.py", *command], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "run 1 of 2" in done.stdout and "run 2 of 2; " in done.stdout
    home = tmp_path / "runs" / "asked"
    assert "| masked | all | yes | 48 |" in (home / "report" / "results.md").read_text()
    assert main(command) == 0
    again = capsys.readouterr().out
    assert "tools/pretrain.py" not in again and "masked     all" in again

    from_a_run = {"overrides": [f"init_from={home / 'masked-all-seed5'}"], "recipe": bare_recipe(tmp_path)}
    began = StudyFolder(
        a_study(squares, tmp_path, **from_a_run), tmp_path / "more", [f"data.heldout={squares}/heldout"]
    )
    assert {recipe.model.decoder.width for recipe in began.recipes.values()} == {32}, "that of the checkpoint"
