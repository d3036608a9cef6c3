"""What came of the runs of a study: their evaluations against the samples that they had seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from git_scale.checkpoint.layout import CONFIG
from git_scale.config import RunConfig
from git_scale.data.loader import scored_images
from git_scale.data.mixture import training_sources
from git_scale.data.store import open_store
from git_scale.data.store_share import StoreShare
from git_scale.data.tokenizer import load_tokenizer
from git_scale.errors import ConfigError, DataError
from git_scale.monitoring.writers import read_evaluations
from git_scale.planning.local_model import whole_model
from git_scale.studies.study import StudyRun
from git_scale.tasks import build_task
from git_scale.training.run_folder import differences, read_recipe


@dataclass(frozen=True)
class Point:
    """Holds one evaluation of a run."""

    samples: int
    """That the model had seen until then, with those of the run that it goes on from."""
    nats_per_word: float
    """Of held-out texts, their ends included: what a word costs, whatever its tokens are."""
    score: float


@dataclass(frozen=True)
class Outcome:
    """Holds what came of a run that has ended."""

    run: StudyRun
    points: Sequence[Point]
    training_samples: int
    """Of its data, each seen once in an epoch."""
    parameters: int

    @property
    def last(self) -> Point:
        return self.points[-1]


def has_ended(recipe: RunConfig) -> bool:
    """Whether the run of this recipe has been evaluated at its last step.

    Raises ConfigError where a run of another recipe lies in its place.
    """
    file = Path(recipe.run_dir) / CONFIG
    if not file.is_file():
        return False
    passed_over = {"run_dir"}  # under another name it is the same place
    if recipe.init_from is not None:  # what was taken over, or is a copy of it
        passed_over |= {"init_from", "data.tokenizer", "model.encoder.start"}
    if others := [key for key, _, _ in differences(recipe, read_recipe(file)) if key not in passed_over]:
        keys = ", ".join(others)
        raise ConfigError(
            [f"{recipe.run_dir}: a run with other values lies here ({keys}): take another --runs folder"]
        )
    return any(line["step"] == recipe.train.steps for line in read_evaluations(file.parent))


def outcome_of(run: StudyRun, recipe: RunConfig, start: RunConfig | None, score: str) -> Outcome:
    """Of a run that has ended. `start`: the run that it goes on from; `score`: the metric that is compared.

    Raises DataError where its last evaluation has no such metric.
    """
    before = start.train.steps * start.train.global_batch if start else 0
    lines = {line["step"]: line for line in read_evaluations(Path(recipe.run_dir)) if f"eval/{score}" in line}
    if recipe.train.steps not in lines:
        raise DataError(f"{recipe.run_dir}: its last evaluation has no eval/{score}")
    points = [
        Point(
            before + step * recipe.train.global_batch,
            _number(line.get("eval/loss")) * tokens_per_word(recipe),
            _number(line[f"eval/{score}"]),
        )
        for step, line in lines.items()
    ]
    parameters = sum(one.numel() for one in whole_model(recipe.model).parameters())
    return Outcome(run, points, _training_samples(start or recipe), parameters)


def _number(logged: float | None) -> float:
    """What is not finite is logged as null."""
    return math.nan if logged is None else logged


def _training_samples(recipe: RunConfig) -> int:
    stores = (open_store(source.path) for source in training_sources(recipe.data).values())
    return sum(len(StoreShare(store, recipe.data.share)) for store in stores)


def tokens_per_word(recipe: RunConfig) -> float:
    """Of the texts that the held-out loss is of, end tokens included. Raises DataError where there are none."""
    return _tokens_per_word(recipe.model_dump_json(include={"data", "eval"}))


@lru_cache  # many runs have the same held-out texts
def _tokens_per_word(sections: str) -> float:
    recipe = RunConfig.model_validate_json(sections)
    data = recipe.data
    task = build_task(data.task, recipe, load_tokenizer(str(data.tokenizer)))
    store = open_store(str(data.heldout))
    tokens = words = 0
    for number in range(scored_images(recipe, store)):
        with suppress(DataError):  # what an evaluation leaves out
            for text in task.reference_texts(store.read(number)):
                of_text = zip(text.tokens, text.targets, strict=True)
                predicted = [token for token, is_target in of_text if is_target]
                tokens += len(predicted)
                words += len(task.tokenizer.decode(predicted).split())
    if not words:
        raise DataError(f"data.heldout={data.heldout}: its texts have no words")
    return tokens / words
