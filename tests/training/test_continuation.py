"""A decay that is begun from a checkpoint of the stable part, against the run that had it from its first step on."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from git_scale.checkpoint import layout
from git_scale.checkpoint.state import TrainingState
from git_scale.config import RunConfig
from git_scale.errors import CheckpointError, ConfigError, UserError
from git_scale.parallel.topology import Topology
from git_scale.recipes import load_run
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import tiny_run
from git_scale.training.continuation import check_continuation, say_if_the_rate_jumps

BRANCH, MIDDLE, END = 5, 8, 9
STABLE = {"schedule": "wsd", "decay_steps": 6, "ema": 0.9}
DECAY = {"schedule": "wsd", "decay_steps": 3, "ema": 0.9}


def a_run(squares: Path, run_dir: Path, steps: int, dp: int = 1, **given: Any) -> RunConfig:
    """Dropout and two micro-batches per step."""
    optimizer = given.pop("optimizer", STABLE)
    run = tiny_run(
        squares,
        run_dir,
        train={"steps": steps, "micro_batch": 4 // dp},
        optimizer={**optimizer, "warmup_steps": 2},
        **given,
    )
    tree = run.model_dump(mode="json")
    tree["model"]["decoder"]["dropout"] = 0.2
    return RunConfig.model_validate(tree)


def train(
    topology: Topology, device: torch.device, run: RunConfig, stage: int, until: int, saves: list[int]
) -> list[tuple[int, str, str]]:
    """Step, loss and gradient norm to the last bit, from wherever the run stands."""
    from git_scale.training.build import build_trainer

    trainer = build_trainer(run, {"zero_optimization": {"stage": stage}}, topology, device)
    curve = []
    while trainer.step < until:
        result = trainer.train_step()
        trainer.step += 1
        curve.append((trainer.step, result.loss.hex(), float(result.grad_norm).hex()))
        if trainer.step in saves:
            trainer.save()
    if trainer.lease is not None:
        trainer.lease.release()
    return curve


def checkpoint(run_dir: Path, step: int) -> Path:
    return layout.checkpoints_folder(run_dir) / layout.step_name(step)


def assert_same_checkpoint(one: Path, other: Path) -> None:
    first, second = (TrainingState(path / layout.STATE_FOLDER) for path in (one, other))
    assert first.index == second.index
    for name in first.index.shapes:
        assert first.kinds(name) == second.kinds(name)
        for kind in first.kinds(name):
            assert torch.equal(first.read(name, kind), second.read(name, kind)), (name, kind)
    assert layout.read_progress(one) == layout.read_progress(other)


@pytest.mark.distributed
@pytest.mark.parametrize(("dp", "stage"), [(1, 0), (2, 3), pytest.param(2, 1, marks=pytest.mark.proof)])
def test_a_decay_from_a_checkpoint_is_the_run_that_was_to_end_there(
    squares: Path, tmp_path: Path, dp: int, stage: int
) -> None:
    whole = a_run(squares, tmp_path / "whole", END, dp, optimizer=DECAY)
    expected = run_distributed(train, dp, whole, stage, END, [MIDDLE, END])
    source = a_run(squares, tmp_path / "stable", 100, dp)
    first = run_distributed(train, dp, source, stage, MIDDLE, [BRANCH, MIDDLE])  # goes on behind the branch
    before = (tmp_path / "stable" / "config.yaml").read_bytes()
    given = {"optimizer": DECAY, "continue_from": str(checkpoint(tmp_path / "stable", BRANCH))}
    branch = tiny_branch(
        a_run(squares, tmp_path / "branch", END, dp, optimizer=DECAY), given["continue_from"]
    )
    decayed = run_distributed(train, dp, branch, stage, MIDDLE, [MIDDLE])
    decayed_on = run_distributed(train, dp, branch, stage, END, [END])
    for rank in range(dp):
        assert first[rank][:BRANCH] + decayed[rank] + decayed_on[rank] == expected[rank]
    for step in (MIDDLE, END):
        assert_same_checkpoint(checkpoint(tmp_path / "branch", step), checkpoint(tmp_path / "whole", step))
    with pytest.raises(AssertionError):  # what was not decayed is another model
        assert_same_checkpoint(
            checkpoint(tmp_path / "stable", MIDDLE), checkpoint(tmp_path / "whole", MIDDLE)
        )
    assert (tmp_path / "stable" / "config.yaml").read_bytes() == before
    assert [path.name for path in layout.published(tmp_path / "stable")] == [
        layout.step_name(MIDDLE),
        layout.step_name(BRANCH),
    ]


def tiny_branch(run: RunConfig, source: str) -> RunConfig:
    return run.model_copy(update={"continue_from": source})


def write_checkpoint(run: RunConfig, step: int) -> Path:
    """Of a run what is read before any weight is: its recipe and its progress."""
    path = checkpoint(Path(run.run_dir), step)
    path.mkdir(parents=True)
    progress = layout.RunProgress(step, 8 * step, 0, 0, 0, "data", "tokenizer", 1, 0)
    (path / layout.PROGRESS).write_text(json.dumps(vars(progress)))
    (path / layout.CONFIG).write_text(run.to_yaml())
    (path / layout.MANIFEST).write_text(layout.manifest_text([]))
    return path


def problem_of(run: RunConfig) -> str:
    try:
        check_continuation(run)
    except UserError as error:
        return str(error)
    return "accepted"


COSINE, CONSTANT = {"schedule": "cosine"}, {"schedule": "constant"}
WSD_10 = {"schedule": "wsd", "decay_steps": 10}


@pytest.mark.parametrize(
    ("there", "step", "here", "steps", "problem"),
    [
        (CONSTANT, 50, WSD_10, 60, "accepted"),
        (CONSTANT, 50, CONSTANT, 60, "accepted"),
        (WSD_10, 90, WSD_10, 100, "accepted"),
        (WSD_10, 90, WSD_10, 500, "accepted"),
        (
            COSINE,
            50,
            WSD_10,
            60,
            "it is of optimizer.schedule=cosine over train.steps=100, which has no stable part to decay from: train"
            " with optimizer.schedule=wsd or constant",
        ),
        (
            WSD_10,
            91,
            WSD_10,
            101,
            "it is of optimizer.schedule=wsd over train.steps=100, which decays from step 90 on, and stands at step"
            " 91: take a checkpoint up to that",
        ),
        (
            CONSTANT,
            50,
            WSD_10,
            55,
            "it stands at step 50, and the optimizer.decay_steps=10 of train.steps=55 begin at 45: set train.steps=60"
            " or optimizer.decay_steps=5",
        ),
        (
            CONSTANT,
            50,
            COSINE,
            60,
            "optimizer.schedule=cosine has no stable part that step 50 could lie in: set optimizer.schedule=wsd or"
            " constant",
        ),
        (
            CONSTANT,
            50,
            CONSTANT,
            50,
            "it stands at step 50, and train.steps=50 leaves nothing to do: set train.steps higher",
        ),
    ],
)
def test_a_decay_begins_in_the_stable_part_or_is_refused(
    squares: Path,
    tmp_path: Path,
    there: dict[str, Any],
    step: int,
    here: dict[str, Any],
    steps: int,
    problem: str,
) -> None:
    source = write_checkpoint(a_run(squares, tmp_path / "there", 100, optimizer=there), step)
    run = tiny_branch(a_run(squares, tmp_path / "here", steps, optimizer=here), str(source))
    found = problem_of(run)
    assert found == problem or f"continue_from={source}: {problem}" in found
    # the same of a run that goes on in its own folder under another schedule
    own = a_run(squares, tmp_path / "there", steps, optimizer=here)
    changes = there["schedule"] != here["schedule"]
    found = problem_of(own)
    assert found == "accepted" if not changes else found == problem or problem in found


def test_another_run_is_refused_and_no_checkpoint_is_named(squares: Path, tmp_path: Path) -> None:
    source = write_checkpoint(a_run(squares, tmp_path / "there", 100, optimizer=CONSTANT), 50)
    here = tiny_branch(a_run(squares, tmp_path / "here", 60, optimizer=CONSTANT), str(source))
    other = here.model_copy(update={"seed": 7})
    assert (
        f"seed=7, but it is of a run with 0: --config {source / 'config.yaml'} has its values"
        in problem_of(other)
    )
    nowhere = tiny_branch(here, str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="neither a checkpoint nor the folder of a run"):
        check_continuation(nowhere)
    assert problem_of(tiny_branch(here, str(tmp_path / "there"))) == "accepted", "a run's newest checkpoint"
    write_checkpoint(here, 55)  # once it has one of its own, the other may be gone
    assert problem_of(nowhere.model_copy(update={"run_dir": here.run_dir})) == "accepted"


def test_a_run_that_has_begun_keeps_what_it_began_from(squares: Path, tmp_path: Path) -> None:
    from git_scale.training.run_folder import check_run_folder

    here = tiny_branch(a_run(squares, tmp_path / "here", 60, optimizer=CONSTANT), str(tmp_path / "there"))
    Path(here.run_dir).mkdir()
    (Path(here.run_dir) / "config.yaml").write_text(here.to_yaml())
    check_run_folder(here)
    with pytest.raises(ConfigError, match=r"continue_from=None, but .* is a run with"):
        check_run_folder(here.model_copy(update={"continue_from": None}))


def test_the_recipe_of_the_run_says_all_but_the_end(squares: Path, tmp_path: Path) -> None:
    source = write_checkpoint(a_run(squares, tmp_path / "there", 100, optimizer=CONSTANT), 50)
    given = [
        f"run_dir={tmp_path / 'here'}",
        f"continue_from={source}",
        "optimizer.schedule=wsd",
        "optimizer.decay_steps=10",
        "train.steps=60",
    ]
    run = load_run(str(source / "config.yaml"), given)
    assert problem_of(run) == "accepted"
    assert (run.train.steps, run.optimizer.decay_steps, run.model.decoder.dropout) == (60, 10, 0.2)


def test_model_and_tokenizer_are_those_of_what_it_goes_on_from() -> None:
    """Below the recipe, as those of init_from are, which the checkpoint has in it."""
    asked: list[str] = []

    def start(source: str, run_dir: str) -> dict[str, Any]:
        asked.append(source)
        return {"model": {"vocab_size": 34}}

    run = load_run("finetune_vqa", ["init_from=gone", "continue_from=there"], start)
    assert asked == ["there"] and run.model.vocab_size == 34


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        ((COSINE, 100), (COSINE, 200), "0.8619 of the full one (optimizer.schedule=cosine, train.steps=200)"),
        ((COSINE, 50), (COSINE, 100), "it was to be 0 (cosine, 50)"),
        ((WSD_10, 55), (WSD_10, 100), "it was to be 0.2929 (wsd, 55)"),
        ((WSD_10, 100), (WSD_10, 200), ""),
        ((CONSTANT, 100), (CONSTANT, 60), ""),
        ((COSINE, 100), (COSINE, 100), ""),
        ((COSINE, 100), (COSINE, 50), ""),  # nothing is left to do
    ],
)
def test_a_rate_that_jumps_is_said(
    squares: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, there: Any, here: Any, said: str
) -> None:
    """At step 50."""
    one, other = (a_run(squares, tmp_path, steps, optimizer=schedule) for schedule, steps in (there, here))
    with caplog.at_level(logging.WARNING):
        say_if_the_rate_jumps(one, other, 50)
    assert said in caplog.text and bool(caplog.text) == bool(said)
