"""What a model says of held-out images, asked on all ranks, and what that is worth."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from git_scale.config import RunConfig
from git_scale.data.batch import EvalBatch
from git_scale.data.loader import GAIN_IMAGES, build_eval_loader, scored_images
from git_scale.data.problems import ProblemCounts, describe_share
from git_scale.data.quarantine import Quarantine
from git_scale.data.store import SampleStore
from git_scale.errors import DataError
from git_scale.evaluation.generation import TextGenerator
from git_scale.evaluation.heldout_loss import (
    TextLoss,
    accuracy_metrics,
    loss_metrics,
    perplexity,
    predictions_right,
    text_losses,
)
from git_scale.evaluation.sheet import SheetCell, draw_captions
from git_scale.metrics.metric import Prediction, Predictions
from git_scale.metrics.scores import score
from git_scale.models.interface import Runner
from git_scale.objectives.examples import heldout_examples
from git_scale.parallel import collectives
from git_scale.parallel.comm import DP
from git_scale.parallel.topology import Topology
from git_scale.progress import progress
from git_scale.tasks.task import Task

log = logging.getLogger(__name__)

# Silent where an evaluation takes seconds
PROGRESS: dict[str, Any] = {"desc": "evaluation", "delay": 5, "leave": False}


@dataclass(frozen=True)
class EvaluationResult:
    """Holds what an evaluation found, the same on every rank; predictions in the order of the shards."""

    metrics: dict[str, float]
    predictions: Predictions
    sheet: Image.Image | None
    problems: list[str]
    """One message per sample that could not be used."""
    results: list[dict[str, Any]]
    """The predictions as the evaluation server takes them."""
    metric_names: tuple[str, ...] = ()
    """Those of the task, in git_scale.metrics.METRICS."""
    final_metrics: tuple[str, ...] = ()
    """Those that are still to be had; `with_final_metrics` adds them."""
    store: SampleStore | None = None
    """What was asked about."""
    run: RunConfig | None = None
    """By which it was asked."""


class Evaluator:
    """Asks what the task asks of the first `eval.images` held-out samples; each rank takes every dp-th of them.

    The held-out loss is that of the same samples, or of the first 256 where those are fewer.
    """

    def __init__(
        self,
        run: RunConfig,
        store: SampleStore,
        task: Task,
        topology: Topology,
        quarantine: Quarantine | None = None,
        key: str = "data.heldout",
    ) -> None:
        """`key`: where the samples were given, for messages."""
        self._key = key
        self._quarantine = quarantine
        self._run = run
        self._store = store
        self._task = task
        self._topology = topology

    def evaluate(self, runner: Runner) -> EvaluationResult:
        """Collective. Raises Stopped on all ranks, between two batches, when any was asked to stop."""
        topology, task = self._topology, self._task
        generator = TextGenerator(runner, task.tokenizer, self._run.eval)
        loader = build_eval_loader(
            self._run,
            self._store,
            task,
            topology.dp_rank,
            topology.dp,
            self._quarantine,
            heldout_examples(self._run, task.tokenizer),
        )
        predictions: list[Prediction] = []
        losses: list[TextLoss] = []
        right = Counter[tuple[str, bool]]()
        shown: list[tuple[int, np.ndarray]] = []
        problems: list[str] = []
        runner.model.eval()
        first = 0  # number of the batch's first sample on the first rank: the same on all of them
        batches = collectives.each_together(loader, runner.device)
        seconds = 1 if sys.stderr.isatty() else 30  # in a log file each bar is a line
        bar = {**PROGRESS, "mininterval": seconds, "disable": not topology.is_writer}
        for batch in progress(batches, None, "batch", **bar):
            losses += text_losses(runner, batch, with_others=task.has_images and first < GAIN_IMAGES)
            right += predictions_right(runner, batch)
            if first < self._run.eval.images:
                predictions += task.predict(batch, generator)
            first += self._run.train.micro_batch * topology.dp
            shown += self._images_to_show(batch)
            problems += batch.problems
        runner.model.train()
        parts = DP.gather_objects((predictions, shown, problems, losses, right))
        problems = [message for part in parts for message in part[2]]
        self._check_problems(problems)
        said = (item for part in parts for item in part[0])
        everything = Predictions(sorted(said, key=lambda item: item.index))
        pictures = dict(item for part in parts for item in part[1])
        metrics = (
            task.score(everything)
            | loss_metrics(loss for part in parts for loss in part[3])
            | accuracy_metrics(sum((part[4] for part in parts), Counter()))
        )
        if not task.has_images and "loss" in metrics:
            metrics["perplexity"] = perplexity(metrics["loss"])
        return EvaluationResult(
            {f"eval/{name}": value for name, value in metrics.items()},
            everything,
            _draw(everything, pictures),
            problems,
            [task.result_row(item) for item in everything],
            task.metrics,
            task.final_metrics,
            self._store,
            self._run,
        )

    def _check_problems(self, problems: list[str]) -> None:
        """Says what could not be used; raises DataError where that is most of it, and a score would say nothing."""
        if not problems:
            return
        images = scored_images(self._run, self._store)
        share = describe_share(len(problems), images)
        said = f"{self._key}: {share} held-out samples cannot be used:\n{ProblemCounts(problems)}"
        if 2 * len(problems) > images and self._run.data.max_bad_share < 1:
            raise DataError(
                f"{said}\nMend {self._key}, or set data.max_bad_share=1 to score the others alone."
            )
        log.warning("%s", said)

    def _images_to_show(self, batch: EvalBatch) -> list[tuple[int, np.ndarray]]:
        return [
            (index, image[0].permute(1, 2, 0).numpy())
            for index, image in zip(batch.indices, batch.images, strict=True)
            if 0 <= index < self._run.eval.pictures
        ]


def with_final_metrics(evaluation: EvaluationResult) -> EvaluationResult:
    """The evaluation with its task's final metrics as well. Not collective: each call takes the whole time."""
    found = score(evaluation.final_metrics, evaluation.predictions)
    return replace(
        evaluation,
        metrics=evaluation.metrics | {f"eval/{name}": value for name, value in found.items()},
        metric_names=(*evaluation.metric_names, *evaluation.final_metrics),
        final_metrics=(),
    )


def _draw(predictions: Predictions, pictures: dict[int, np.ndarray]) -> Image.Image | None:
    """The first text of each image to show, beside what was asked."""
    first = {item.index: item for item in reversed(predictions)}
    rows = [
        SheetCell(
            pictures[index],
            f"{item.question} {' / '.join(item.references[:1])}".strip(),
            f"{item.question} {item.generated}".strip(),
        )
        for index, item in sorted(first.items())
        if index in pictures
    ]
    return draw_captions(rows) if rows else None
