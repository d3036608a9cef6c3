"""A run that goes on from another one's checkpoint, with all of its state: how a decay is begun from anywhere.

    python tools/pretrain.py --config runs/a/config.yaml run_dir=runs/a_60k \\
        continue_from=runs/a/checkpoints/step_00060000 train.steps=66000 optimizer.decay_steps=6000

is, bit for bit, the run that had been given these steps at its beginning, provided that the rates of all steps so far
are the same. They are in the stable part of both schedules (git_scale/schedules.py): anything else is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from git_scale.checkpoint import layout
from git_scale.checkpoint.opened_checkpoint import read_run
from git_scale.config import RunConfig
from git_scale.errors import CheckpointError, ConfigError
from git_scale.schedules import lr_factor, stable_steps
from git_scale.training.run_folder import other_identity

log = logging.getLogger(__name__)


def source_of(run: RunConfig) -> Path | None:
    """The checkpoint of another run that this one begins at; None where it has none, or has begun already.

    Raises CheckpointError when `continue_from` holds none.
    """
    if run.continue_from is None or layout.published(Path(run.run_dir)):
        return None
    return layout.find_checkpoint(Path(run.continue_from))


def check_continuation(run: RunConfig) -> None:
    """Raises ConfigError where the run cannot go on from `continue_from`, or from its own checkpoint when its
    schedule has become another; CheckpointError where there is no checkpoint to read."""
    if (source := source_of(run)) is not None:
        there, step = read_run(source), layout.read_progress(source).step
        problems = [*_differences(there, run, source), *_problems_of_schedule(there, run, step)]
        if problems:
            raise ConfigError([f"continue_from={run.continue_from}: {problem}" for problem in problems])
        return
    for own in layout.published(Path(run.run_dir))[:1]:
        try:
            there, step = read_run(own), layout.read_progress(own).step
        except CheckpointError:
            return  # damaged, as the start will find and say
        has_changed = there.optimizer.schedule != run.optimizer.schedule
        if has_changed and (problems := list(_problems_of_schedule(there, run, step))):
            raise ConfigError([f"run_dir={run.run_dir}: {problem}" for problem in problems])


def _differences(there: RunConfig, run: RunConfig, source: Path) -> Iterator[str]:
    """What makes it another run than the checkpoint's."""
    there = there.model_copy(update={"continue_from": run.continue_from})
    for key, ours, theirs in other_identity(there, run):
        yield f"{key}={ours!r}, but it is of a run with {theirs!r}: --config {source / layout.CONFIG} has its values"


def _problems_of_schedule(there: RunConfig, run: RunConfig, step: int) -> Iterator[str]:
    """Why the checkpoint of `there` at `step` is no beginning of `run`: one of them has left its stable part."""
    begun, ends, steps = stable_steps(there), stable_steps(run), run.train.steps
    trained = f"it is of optimizer.schedule={there.optimizer.schedule} over train.steps={there.train.steps}"
    if step > begun:
        yield (
            f"{trained}, which decays from step {begun} on, and stands at step {step}: take a checkpoint up to that"
            if begun
            else f"{trained}, which has no stable part to decay from: train with optimizer.schedule=wsd or constant"
        )
    elif step >= steps:
        yield f"it stands at step {step}, and train.steps={steps} leaves nothing to do: set train.steps higher"
    elif step > ends and run.optimizer.decay_steps:
        decay = run.optimizer.decay_steps
        yield (
            f"it stands at step {step}, and the optimizer.decay_steps={decay} of train.steps={steps} begin at {ends}:"
            f" set train.steps={step + decay} or optimizer.decay_steps={steps - step}"
        )
    elif step > ends:
        yield (
            f"optimizer.schedule={run.optimizer.schedule} has no stable part that step {step} could lie in: set"
            " optimizer.schedule=wsd or constant"
        )


def say_if_the_rate_jumps(there: RunConfig, run: RunConfig, step: int) -> None:
    """Warns where a run that goes on follows another curve from here on than the one that led here."""
    if step >= run.train.steps:
        return
    was, now = lr_factor(step, there), lr_factor(step, run)
    if was != now:
        log.warning(
            "the learning rate jumps: step %d learns at %.4g of the full one (optimizer.schedule=%s, train.steps=%d);"
            " it was to be %.4g (%s, %d)",
            *(step, now, run.optimizer.schedule, run.train.steps),
            *(was, there.optimizer.schedule, there.train.steps),
        )
