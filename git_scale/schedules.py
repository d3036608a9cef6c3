"""The learning rate over a run, by name: a pure function of the step and the run, so that going on needs no state.

    step 59,999 of a `wsd` run of 66,000 steps with optimizer.decay_steps=6000: the full rate
    step 63,000: half of the decay is done, and 1 - sqrt(0.5) = 0.29 of the rate is left

All rise in a line over optimizer.warmup_steps. A schedule is a few lines here and one in the table; plugins use
SCHEDULES.add. Which steps have the same rate however long the run is - its stable part - is said beside it: from any
checkpoint of those a decay can begin.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from git_scale.config import RunConfig
from git_scale.registry import Registry


@dataclass(frozen=True)
class Schedule:
    """Says how the rate moves once the warm-up is over."""

    factor: Callable[[int, RunConfig], float]
    """Share of the full rate in a step (the first is 0) behind the warm-up."""
    stable_steps: Callable[[RunConfig], int]
    """So many steps from the first on have a rate that hangs neither on train.steps nor on a decay."""
    decays: bool = False
    """Whether it takes optimizer.decay_steps."""


def lr_factor(step: int, run: RunConfig) -> float:
    """Share of the full learning rate in step `step` (the first is 0)."""
    warmup_steps = run.optimizer.warmup_steps
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return SCHEDULES[run.optimizer.schedule].factor(step, run)


def stable_steps(run: RunConfig) -> int:
    """So many steps of the run, from its first on, are those of a longer one as well."""
    return SCHEDULES[run.optimizer.schedule].stable_steps(run)


def _cosine(step: int, run: RunConfig) -> float:
    warmup_steps = run.optimizer.warmup_steps
    progress = (step - warmup_steps) / (run.train.steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def _before_decay(run: RunConfig) -> int:
    return run.train.steps - (run.optimizer.decay_steps or 0)


def _warmup_stable_decay(step: int, run: RunConfig) -> float:
    """Stable, then 1 - sqrt(share of the decay that is done).

    arXiv 2405.18392 finds that it ends lower than a line. MiniCPM (arXiv 2404.06395), which named the schedule,
    halves the rate again and again, which never reaches 0.
    """
    done = step - _before_decay(run)
    return 1.0 if done <= 0 else 1 - math.sqrt(done / (run.optimizer.decay_steps or 1))


COSINE = Schedule(_cosine, stable_steps=lambda run: 0)
WSD = Schedule(_warmup_stable_decay, stable_steps=_before_decay, decays=True)
CONSTANT = Schedule(lambda step, run: 1.0, stable_steps=lambda run: run.train.steps)

SCHEDULES: Registry[Schedule] = Registry(
    "optimizer.schedule",
    {name: f"git_scale.schedules:{name.upper()}" for name in ("cosine", "wsd", "constant")},
    flaw_of="git_scale.schedules:flaw_of",
)


def flaw_of(entry: object) -> str:
    """What is wrong with an entry that a plugin has added; empty where it is sound."""
    return "" if isinstance(entry, Schedule) else f"{entry!r} is no {__name__}.Schedule"
