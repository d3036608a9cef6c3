"""What the objectives of a run learn of a text: an example for each way in which they read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from git_scale.config import RunConfig
from git_scale.data.texts import Example, ExampleMaker, Text
from git_scale.data.tokenizer import Tokenizer
from git_scale.objectives import OBJECTIVES
from git_scale.objectives.objective import Objective


class Examples:
    """Makes one example of a text with each of some objectives."""

    def __init__(self, objectives: Sequence[Objective], tokenizer: Tokenizer) -> None:
        self._objectives, self._tokenizer = objectives, tokenizer

    def __call__(self, text: Text, rng: np.random.Generator) -> list[Example]:
        return [objective.example(text, self._tokenizer, rng) for objective in self._objectives]


def readings_of(terms: Mapping[str, Objective]) -> dict[str, int]:
    """The number of the way in which each objective reads texts; those with one `example` share it."""
    ways = list(dict.fromkeys(type(term).example for term in terms.values()))
    return {name: ways.index(type(term).example) for name, term in terms.items()}


def has_own_example(objective: type[Objective]) -> bool:
    """Whether it reads texts otherwise than the language model does."""
    return objective.example is not Objective.example


def training_examples(run: RunConfig, tokenizer: Tokenizer) -> ExampleMaker:
    """One example for each way of reading, in their order."""
    terms = _terms(run)
    first = {way: terms[name] for name, way in reversed(readings_of(terms).items())}
    return Examples([first[way] for way in sorted(first)], tokenizer)


def heldout_examples(run: RunConfig, tokenizer: Tokenizer) -> dict[str, ExampleMaker]:
    """Of each objective that reads texts in a way of its own: what evaluations measure beside the next words.

    Objectives of plugins that are not there, as of a checkpoint that is evaluated, are left out.
    """
    own = {name: term for name, term in _terms(run).items() if has_own_example(type(term))}
    return {name: Examples([term], tokenizer) for name, term in own.items()}


def _terms(run: RunConfig) -> dict[str, Objective]:
    return {name: OBJECTIVES[name](run) for name in run.train.objectives if name in OBJECTIVES}
