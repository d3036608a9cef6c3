"""What is said of a picture: whole captions, or answers after questions.

Training takes Texts (tokens, and which of them are to be predicted), an evaluation takes Queries (the tokens that a
generated text begins with, and the texts that would be right).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from git_scale.config import DataConfig, RunConfig
from git_scale.data.batch import Query, Text
from git_scale.data.captions import CAPTION_NAMES, choose_captions, clean_caption, clean_captions
from git_scale.data.shards import RawSample
from git_scale.data.tokenizer import Tokenizer
from git_scale.errors import DataError

MAX_REFERENCE_TEXTS = 5  # captions of a picture that the held-out loss looks at: COCO's number


class Task(Protocol):
    """One way to turn what is stored beside a picture into tokens."""

    def texts(self, raw: RawSample, rng: np.random.Generator) -> list[Text]:
        """At most `data.texts_per_image` texts to learn. Raises DataError when the sample has none."""

    def queries(self, raw: RawSample) -> list[Query]:
        """Everything that an evaluation asks of the sample. Raises DataError when there is nothing."""

    def reference_texts(self, raw: RawSample) -> list[Text]:
        """The right texts as training has them, for the held-out loss; none where none is known."""


def build_task(run: RunConfig, tokenizer: Tokenizer) -> Task:
    prompts = Prompts(tokenizer, run.data)
    return QuestionTask(prompts) if run.data.task == "vqa" else CaptionTask(prompts, run.model.frames)


@dataclass(frozen=True)
class Prompts:
    """Begin, question, answer, end within `data.max_text_tokens` (paper section 3.2: no separator between them)."""

    tokenizer: Tokenizer
    data: DataConfig

    def caption(self, caption: str) -> Text:
        return self.answer([], self.tokenizer.encode(caption))

    def answer(self, question: list[int], answer: list[int]) -> Text:
        """The loss is on the answer and the end token; a question that is too long for both loses its beginning."""
        room = self.data.max_text_tokens - 2
        answer, question = answer[:room], self._cut(question)
        question = question[max(0, len(question) + len(answer) - room) :]
        tokens = [self.tokenizer.bos_id, *question, *answer, self.tokenizer.eos_id]
        return Text(tokens, [False] * (1 + len(question)) + [True] * (len(answer) + 1))

    def prefix(self, question: list[int]) -> list[int]:
        """What a generated answer begins with: of the question's first 40 tokens the last 38, which 40 - 2 are."""
        return [self.tokenizer.bos_id, *self._cut(question)[-(self.data.max_text_tokens - 2) :]]

    def _cut(self, question: list[int]) -> list[int]:
        """GIT's tokenizer cuts a question first; what comes after its first 40 tokens is never seen."""
        return question[: self.data.max_text_tokens]


@dataclass(frozen=True)
class CaptionTask:
    """Captions; of a clip where there are frames."""

    prompts: Prompts
    frames: int

    def texts(self, raw: RawSample, rng: np.random.Generator) -> list[Text]:
        stored = self._stored(raw)
        meta = raw.text.meta
        if not stored and meta and meta.keys().isdisjoint(CAPTION_NAMES):
            raise DataError(
                f"no caption: its json holds {', '.join(list(meta)[:8])}, but none of {', '.join(CAPTION_NAMES)}"
            )
        captions = choose_captions(clean_captions(stored), self.prompts.data.texts_per_image, rng)
        return [self.prompts.caption(caption) for caption in captions]

    def queries(self, raw: RawSample) -> list[Query]:
        stored = self._stored(raw)
        references = clean_captions(stored) if stored else []
        identity = _identity(raw.text.meta.get("image_id"), raw.key)
        return [Query(self.prompts.prefix([]), references, identity=identity)]

    def reference_texts(self, raw: RawSample) -> list[Text]:
        stored = self._stored(raw)
        captions = clean_captions(stored)[:MAX_REFERENCE_TEXTS] if stored else []
        return [self.prompts.caption(caption) for caption in captions]

    def _stored(self, raw: RawSample) -> list[str]:
        return raw.text.captions if self.frames == 1 else raw.text.clip_captions


@dataclass(frozen=True)
class QuestionTask:
    """Questions as prefixes. One of the annotators' answers is drawn anew each epoch, as GIT does for VQAv2."""

    prompts: Prompts

    def texts(self, raw: RawSample, rng: np.random.Generator) -> list[Text]:
        questions = [question for question in _questions(raw) if question.references]
        if not questions:
            raise DataError("no question with an answer")
        chosen = rng.permutation(len(questions))[: self.prompts.data.texts_per_image]
        return [self._text(questions[number], rng) for number in chosen]

    def _text(self, question: Query, rng: np.random.Generator) -> Text:
        answer = question.references[int(rng.integers(len(question.references)))]
        encode = self.prompts.tokenizer.encode
        return self.prompts.answer(encode(question.question), encode(answer))

    def queries(self, raw: RawSample) -> list[Query]:
        found = _questions(raw)
        if not found:
            raise DataError("no question")
        encode = self.prompts.tokenizer.encode
        return [
            Query(self.prompts.prefix(encode(item.question)), item.references, item.question, item.identity)
            for item in found
        ]

    def reference_texts(self, raw: RawSample) -> list[Text]:
        """Of each question the answer that most annotators gave."""
        encode = self.prompts.tokenizer.encode
        return [
            self.prompts.answer(encode(item.question), encode(Counter(item.references).most_common(1)[0][0]))
            for item in _questions(raw)
            if item.references
        ]


def _identity(given: object, key: str) -> int | str:
    """What an evaluation's server knows it by, where that is given as a number or text."""
    return given if isinstance(given, int | str) and not isinstance(given, bool) else key


def _questions(raw: RawSample) -> list[Query]:
    """The sample's questions with their answers, cleaned; those without words are left out."""
    return [
        Query([], _answers(item), question, _identity(item.get("question_id"), f"{raw.key}#{number}"))
        for number, item in enumerate(raw.text.questions)
        if (question := clean_caption(item["question"]))
    ]


def _answers(item: dict[str, Any]) -> list[str]:
    """All annotators' answers, repetitions included: they are votes."""
    return list(filter(None, map(clean_caption, item.get("answers", []))))
