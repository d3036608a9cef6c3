"""What came of the runs of a study: their evaluations against the samples that they had seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from git_scale.checkpoint.layout import CONFIG
from git_scale.config import RunConfig
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

HANDED_ON = {"data.tokenizer", "model.encoder.start"}
"""Taken over from a checkpoint, or a copy of it."""
LOOKED_AT = 1000  # held-out samples, for the tokens of a word


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
    if others := [key for key, _, _ in differences(recipe, read_recipe(file)) if key not in HANDED_ON]:
        keys = ", ".join(others)
        raise ConfigError(
            [f"{recipe.run_dir}: a run with other values lies here ({keys}): take another --runs folder"]
        )
    return any(line["step"] == recipe.train.steps for line in read_evaluations(file.parent))


def outcome_of(run: StudyRun, recipe: RunConfig, before: int, score: str) -> Outcome:
    """Of a run that has ended. `before`: samples seen before it; `score`: the metric that is compared.

    Raises DataError where no evaluation has it.
    """
    tokens = tokens_per_word(recipe)
    points = [
        Point(
            before + line["step"] * recipe.train.global_batch,
            line["eval/loss"] * tokens,
            line[f"eval/{score}"],
        )
        for line in read_evaluations(Path(recipe.run_dir))
        if {"eval/loss", f"eval/{score}"} <= line.keys()
    ]
    if not points:
        raise DataError(f"{recipe.run_dir}: no evaluation has both eval/loss and eval/{score}")
    model = whole_model(recipe.model)
    return Outcome(run, points, _training_samples(recipe), sum(one.numel() for one in model.parameters()))


def _training_samples(recipe: RunConfig) -> int:
    stores = (open_store(source.path) for source in training_sources(recipe.data).values())
    return sum(len(StoreShare(store, recipe.data.share)) for store in stores)


def tokens_per_word(recipe: RunConfig) -> float:
    """Of the held-out texts, end tokens included."""
    data = recipe.data
    task = build_task(data.task, recipe, load_tokenizer(str(data.tokenizer)))
    store = open_store(str(data.heldout))
    tokens = words = 0
    for number in range(min(len(store), LOOKED_AT)):
        for text in task.reference_texts(store.read(number)):
            predicted = [
                token for token, is_target in zip(text.tokens, text.targets, strict=True) if is_target
            ]
            tokens += len(predicted)
            words += len(task.tokenizer.decode(predicted).split())
    if not words:
        raise DataError(f"data.heldout={data.heldout}: its texts have no words")
    return tokens / words
