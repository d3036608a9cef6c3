"""Captions, questions and answers as the tokens that the decoder reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from git_scale.config import DataConfig
from git_scale.data.texts import Text
from git_scale.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompts:
    """Joins begin, question, answer and end within `data.max_text_tokens` (paper section 3.2: no separator)."""

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

    def choices(self, texts: Iterable[str]) -> dict[tuple[int, ...], str]:
        """For a Query that is to be answered with one of these texts; those alike in tokens are the first of them."""
        spelled: dict[tuple[int, ...], str] = {}
        for text in texts:
            spelled.setdefault(tuple(self.tokenizer.encode(text)), text)
        return spelled

    def _cut(self, question: list[int]) -> list[int]:
        """GIT's tokenizer cuts a question first; what comes after its first 40 tokens is never seen."""
        return question[: self.data.max_text_tokens]
