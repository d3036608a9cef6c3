"""What a task is: which texts a model learns, what it is asked, how its answers are judged, and what they look like
in the file that an evaluation server takes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from git_scale.config import RunConfig
from git_scale.data.captions import TextRecord
from git_scale.data.store import RawSample
from git_scale.data.texts import Query, Text
from git_scale.data.tokenizer import Tokenizer
from git_scale.errors import DataError
from git_scale.metrics.metric import Prediction
from git_scale.metrics.scores import score
from git_scale.registry import lacks
from git_scale.tasks.prompts import Prompts

if TYPE_CHECKING:  # it needs torch, which reading a run does without
    from git_scale.data.batch import EvalBatch


@dataclass(frozen=True)
class TextRequirement:
    """Says what a task looks for in the texts of a sample.

    TextRequirement("captions", lambda text: bool(text.captions))
    """

    what: str
    """A plural, as messages name it."""
    is_met_by: Callable[[TextRecord], bool]


class EvaluationContext(Protocol):
    """An evaluation at work, as a task sees it: the model on all ranks, and texts generated with it."""

    runner: Any
    """A Runner of git_scale/models/interface.py."""

    def generate(self, batch: EvalBatch) -> list[Prediction]:
        """A text for each query of the batch. Collective where the model's forward pass is."""


class Task(ABC):
    """One way to learn from what is stored beside an image, to ask for it, and to judge what comes of that."""

    metrics: ClassVar[tuple[str, ...]]
    """Names in git_scale.metrics.METRICS, in the order in which they are shown."""
    final_metrics: ClassVar[tuple[str, ...]] = ()
    """Those that tools/evaluate.py adds, and that take too long for evaluations in training."""

    learns_from: ClassVar[TextRequirement]
    """At least some training samples must have it, or a start is refused."""
    asks_about: ClassVar[TextRequirement]
    """The same of held-out samples, which may be a test server's and hold no right text."""
    has_images: ClassVar[bool] = True
    """Whether its texts are about images. Those of a task without them are seen alone."""
    has_questions: ClassVar[bool] = False
    """Whether generated texts begin with a question, which takes up to `data.max_text_tokens` positions."""

    def __init__(self, run: RunConfig, tokenizer: Tokenizer) -> None:
        self.run, self.tokenizer = run, tokenizer
        self.prompts = Prompts(tokenizer, run.data)

    @classmethod
    def problems_of(cls, run: RunConfig) -> list[str]:
        """What a run lacks for this task, each with its key: looked for before any work."""
        return []

    def has_image(self, raw: RawSample) -> bool:
        """Whether the sample's texts are about an image."""
        return self.has_images

    @abstractmethod
    def texts(self, raw: RawSample, rng: np.random.Generator) -> list[Text]:
        """At most `data.texts_per_image` texts to learn. Raises DataError when the sample has none."""

    @abstractmethod
    def queries(self, raw: RawSample) -> list[Query]:
        """Everything that an evaluation asks of the sample. Raises DataError when there is nothing."""

    def reference_texts(self, raw: RawSample) -> list[Text]:
        """The right texts as training has them, for the held-out loss; none where none is known.

        By default `texts` with the same random numbers at every evaluation.
        """
        try:
            return self.texts(raw, np.random.default_rng(0))
        except DataError:
            return []

    @abstractmethod
    def result_row(self, prediction: Prediction) -> dict[str, Any]:
        """One row of results.json, as the evaluation server takes it."""

    def predict(self, batch: EvalBatch, context: EvaluationContext) -> list[Prediction]:
        """What the model says of the samples of one batch, on this rank; `score` is given that of all ranks.

        A task that is not about generated texts asks `context.runner.model` for something else.
        """
        return context.generate(batch)

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """The metrics by name, from the predictions of all samples in the order of the shards."""
        return score(self.metrics, predictions)


def flaw_of(entry: Any) -> str:
    """Why an entry of TASKS cannot be used; empty for one that can."""
    if flaw := lacks(entry, Task, ("metrics", "learns_from", "asks_about")):
        return flaw
    if isinstance(entry.metrics, str):
        return f"metrics = {entry.metrics!r} is a text: names are given as ({entry.metrics!r},)"
    return ""


def identity_of(given: object, key: str) -> int | str:
    """The number or text that an evaluation's server knows something by; the sample's key where there is none."""
    return given if isinstance(given, int | str) and not isinstance(given, bool) else key
