"""What a run minimises: the weighted sum of its objectives, over one forward pass of the model."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from git_scale.config import RunConfig
from git_scale.data.batch import Batch
from git_scale.data.mixture import training_sources
from git_scale.errors import ConfigError
from git_scale.models.interface import Runner
from git_scale.objectives import OBJECTIVES
from git_scale.objectives.examples import has_own_example, readings_of
from git_scale.objectives.objective import Objective, SingleRankComm, VocabularyComm, inputs_of
from git_scale.tasks import TASKS


class TrainingLoss:
    """`terms`: the objectives by name, in the order of the recipe."""

    def __init__(self, run: RunConfig) -> None:
        self.weights = dict(run.train.objectives)
        self.terms: dict[str, Objective] = {name: OBJECTIVES[name](run) for name in self.weights}
        self._readings = readings_of(self.terms)
        self.prepares = any(type(term).prepare is not Objective.prepare for term in self.terms.values())

    def counts(self, batches: list[Batch]) -> list[int]:
        """Of each term, over this rank's micro-batches of a step as `prepare` has given them."""
        return [
            sum(_count(name, term, batch.of(self._readings[name])) for batch in batches)
            for name, term in self.terms.items()
        ]

    def prepare(self, runner: Runner, batches: list[Batch]) -> list[Batch]:
        """The micro-batches as the terms want them. Collective where a term asks the model something."""
        for name, term in self.terms.items():
            prepared = term.prepare(runner, batches)
            if not isinstance(prepared, list) or len(prepared) != len(batches):
                raise _misbehaves(name, "prepare", prepared, f"the {len(batches)} micro-batches of the step")
            for batch in prepared:
                if batch.readings and sum(batch.readings) != batch.num_targets:
                    given = f"{batch.num_targets} rows with readings={batch.readings}"
                    raise _misbehaves(name, "prepare", given, "`readings` that count the rows of each way")
            batches = prepared
        return batches

    def of(
        self,
        forward: Callable[..., Tensor],
        batch: Batch,
        dtype: torch.dtype,
        counts: Mapping[str, float],
        comm: VocabularyComm,
    ) -> dict[str, Tensor]:
        """A micro-batch's part of each term with its weight; their sum is what to run backward from.

        counts: of each term over the whole step, on all data-parallel ranks; a term with none is left out.
        """
        logits = forward(*inputs_of(batch, dtype))
        return {
            name: _sum(name, term, logits[batch.rows_of(way)], batch.of(way), comm)
            / (counts[name] / self.weights[name])
            for (name, term), way in zip(self.terms.items(), self._readings.values(), strict=True)
            if counts[name]
        }


def loss_alone(run: RunConfig, model: Callable[..., Any], batch: Batch, dtype: torch.dtype) -> Tensor:
    """The loss of one micro-batch that is a whole step, in a process that holds the whole model."""
    loss = TrainingLoss(run)
    for term in loss.terms.values():
        batch = term.stand_in(batch)
    # What a term counts may depend on values, and those are none here: it is run nevertheless.
    counts = {name: max(1, count) for name, count in zip(loss.terms, loss.counts([batch]), strict=True)}
    return total(loss.of(model, batch, dtype, counts, SingleRankComm()))


def _count(name: str, term: Objective, batch: Batch) -> int:
    count = term.count(batch)
    if isinstance(count, bool) or not isinstance(count, Integral) or count < 0:
        raise _misbehaves(name, "count", count, "a whole number from 0 on")
    return int(count)


def _sum(name: str, term: Objective, logits: Tensor, batch: Batch, comm: VocabularyComm) -> Tensor:
    try:
        value = term.sum(logits, batch, comm)
    except Exception as error:
        error.add_note(f"in the objective {name}")
        if isinstance(error, KeyError) and error.args[0] not in batch.extras:
            error.add_note(
                "a plan runs it without `prepare`: what that adds to a batch, its `stand_in` adds as well"
            )
        raise
    if not isinstance(value, Tensor) or value.ndim > 0:
        raise _misbehaves(name, "sum", value, "a tensor without dimensions")
    if logits.requires_grad and not value.requires_grad:
        raise _misbehaves(name, "sum", value, "a tensor with a gradient, made of the logits")
    return value


def _misbehaves(name: str, method: str, given: object, wanted: str) -> ConfigError:
    shown = f"a tensor of {list(given.shape)}" if isinstance(given, Tensor) else repr(given)[:80]
    return ConfigError([f"train.objectives: {method} of {name} gave {shown}: {wanted} is wanted"])


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """Their sum, to run backward from."""
    return functools.reduce(operator.add, terms.values())


def check_objectives(run: RunConfig, dp: int) -> None:
    """Raises ConfigError for an objective whose micro-batches do not add up, where a step has several; for one that
    needs an image of each sample, where some are text alone; and for a parallel_share that none of them takes."""
    known = {name: OBJECTIVES[name] for name in run.train.objectives if name in OBJECTIVES}
    accumulation, problems = run.accumulation(dp), list[str]()
    single = [name for name, objective in known.items() if not objective.accumulates]
    if single and accumulation > 1:
        problems.append(
            f"train.objectives: {single[0]} compares the samples of a micro-batch with each other, but"
            f" train.global_batch={run.train.global_batch} is {accumulation} micro-batches of"
            f" {run.train.micro_batch} on each of {dp} ranks: set"
            f" train.micro_batch={run.train.global_batch // dp}"
        )
    seeing = [name for name, objective in known.items() if objective.needs_images]
    alone = [
        key
        for key, source in training_sources(run.data).items()
        if (task := str(source.task)) in TASKS and not TASKS[task].has_images
    ]
    if seeing and alone:
        problems.append(
            f"train.objectives: {seeing[0]} needs an image of each sample, and {alone[0]} is text alone: take"
            f" that source out, or {seeing[0]} out of train.objectives"
        )
    share = run.train.parallel_share
    if share > 0 and known and all(has_own_example(objective) for objective in known.values()):
        problems.append(
            f"train.parallel_share={share} is of the objective lm, and {', '.join(known)} reads texts in a way of its"
            " own: set train.parallel_share=0, or add lm to train.objectives"
        )
    if problems:
        raise ConfigError(problems)
