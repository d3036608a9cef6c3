"""Visual question answering: questions are prefixes, answers are learned and generated."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import numpy as np

from git_scale.data.captions import TextRecord, clean_caption
from git_scale.data.store import RawSample
from git_scale.data.texts import Query, Text
from git_scale.errors import DataError
from git_scale.metrics.metric import Prediction
from git_scale.tasks.task import Task, TextRequirement, identity_of


def _has_question(text: TextRecord) -> bool:
    return any(clean_caption(item["question"]) for item in text.questions)


def _has_answered_question(text: TextRecord) -> bool:
    return any(clean_caption(item["question"]) and _answers(item) for item in text.questions)


class QuestionTask(Task):
    """Takes questions as prefixes. One of the annotators' answers is drawn anew each epoch, as GIT does for VQAv2."""

    metrics: ClassVar = ("exact_match", "distinct", "distinct_references", "vqa_accuracy", "anls")
    learns_from: ClassVar = TextRequirement("questions with answers", _has_answered_question)
    asks_about: ClassVar = TextRequirement("questions", _has_question)
    has_questions: ClassVar = True

    def texts(self, raw: RawSample, rng: np.random.Generator) -> list[Text]:
        questions = [question for question in _questions(raw) if question.references]
        if not questions:
            raise DataError("no question with an answer")
        chosen = rng.permutation(len(questions))[: self.run.data.texts_per_image]
        return [self._text(questions[number], rng) for number in chosen]

    def _text(self, question: Query, rng: np.random.Generator) -> Text:
        answer = question.references[int(rng.integers(len(question.references)))]
        encode = self.tokenizer.encode
        return self.prompts.answer(encode(question.question), encode(answer))

    def queries(self, raw: RawSample) -> list[Query]:
        found = _questions(raw)
        if not found:
            raise DataError("no question")
        encode = self.tokenizer.encode
        return [
            Query(self.prompts.prefix(encode(item.question)), item.references, item.question, item.identity)
            for item in found
        ]

    def reference_texts(self, raw: RawSample) -> list[Text]:
        """Of each question the answer that most annotators gave."""
        encode = self.tokenizer.encode
        return [
            self.prompts.answer(encode(item.question), encode(Counter(item.references).most_common(1)[0][0]))
            for item in _questions(raw)
            if item.references
        ]

    def result_row(self, prediction: Prediction) -> dict[str, Any]:
        """VQA's format."""
        return {"question_id": prediction.identity, "answer": prediction.generated}


def _questions(raw: RawSample) -> list[Query]:
    """The sample's questions with their answers, cleaned; those without words are left out."""
    return [
        Query([], _answers(item), question, identity_of(item.get("question_id"), f"{raw.key}#{number}"))
        for number, item in enumerate(raw.text.questions)
        if (question := clean_caption(item["question"]))
    ]


def _answers(item: dict[str, Any]) -> list[str]:
    """All annotators' answers, repetitions included: they are votes."""
    return list(filter(None, map(clean_caption, item.get("answers", []))))
