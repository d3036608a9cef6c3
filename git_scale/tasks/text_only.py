"""Text alone: the decoder learns language from samples without images, as GIT's paper leaves to later work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from git_scale.data.captions import clean_text
from git_scale.data.store import RawSample
from git_scale.data.texts import Query, Text
from git_scale.errors import DataError
from git_scale.metrics.metric import Prediction
from git_scale.tasks.task import EvaluationContext, Task, TextRequirement

if TYPE_CHECKING:  # it needs torch, which reading a run does without
    from git_scale.data.batch import EvalBatch

MAX_HELDOUT_PARTS = 5  # of a held-out text, so many stretches of data.max_text_tokens count


class TextOnlyTask(Task):
    """Learns the next words of texts; evaluations find the perplexity of held-out ones. Nothing is generated."""

    metrics: ClassVar = ()
    learns_from: ClassVar = TextRequirement(
        "texts without images", lambda text: isinstance(text.meta.get("text"), str) and not text.captions
    )
    asks_about: ClassVar = learns_from
    has_images: ClassVar = False

    def texts(self, raw: RawSample, rng: np.random.Generator) -> list[Text]:
        """One stretch of `data.max_text_tokens` of the text; of a longer one it is drawn where it begins."""
        words = self._words(raw)
        spare = len(words) - self._room
        return [self._part(words, int(rng.integers(spare + 1)) if spare > 0 else 0)]

    def reference_texts(self, raw: RawSample) -> list[Text]:
        """The first stretches, one behind another."""
        words = self._words(raw)
        starts = range(0, len(words), self._room)[:MAX_HELDOUT_PARTS]
        return [self._part(words, start) for start in starts]

    def queries(self, raw: RawSample) -> list[Query]:
        self._words(raw)
        return []

    def predict(self, batch: EvalBatch, context: EvaluationContext) -> list[Prediction]:
        return []

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        return {}

    def result_row(self, prediction: Prediction) -> dict[str, Any]:
        return {}

    @property
    def _room(self) -> int:
        """Words of a stretch; the begin and the end token have their places."""
        return self.run.data.max_text_tokens - 2

    def _words(self, raw: RawSample) -> list[int]:
        text = raw.text.meta.get("text")
        if not isinstance(text, str) or (cleaned := clean_text(text)) is None:
            raise DataError("no text, or an empty one")
        return self.tokenizer.encode(cleaned)

    def _part(self, words: list[int], start: int) -> Text:
        """The end token stands behind the last words of the text alone."""
        part = words[start : start + self._room]
        end = [self.tokenizer.eos_id] if start + self._room >= len(words) else []
        tokens = [self.tokenizer.bos_id, *part, *end]
        return Text(tokens, [False] + [True] * (len(tokens) - 1), has_image=False)
