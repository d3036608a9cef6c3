"""The contract between tasks and data: texts to learn, queries to answer, and who makes them of a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from git_scale.data.store import RawSample
from git_scale.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Text:
    """`tokens` with begin and end; `targets[t]`: tokens[t] is to be predicted from what is before it."""

    tokens: list[int]
    targets: list[bool]


@dataclass(frozen=True)
class Query:
    """What is asked of a held-out picture."""

    prefix: list[int]
    """What the generated text begins with: the begin token, then the question's."""
    references: list[str]
    """Every right text; empty where none is known, as in a test server's data."""
    question: str = ""
    """Empty for a caption."""
    identity: int | str = ""
    """The benchmark's number of the picture or question, else a name that is unique in the data."""


class TextMaker(Protocol):
    """Turns what is stored beside a picture into tokens: every task of git_scale/tasks is one."""

    tokenizer: Tokenizer

    def texts(self, raw: RawSample, rng: np.random.Generator) -> list[Text]:
        """At most `data.texts_per_image` texts to learn. Raises DataError when the sample has none."""

    def queries(self, raw: RawSample) -> list[Query]:
        """Everything that an evaluation asks of the sample. Raises DataError when there is nothing."""

    def reference_texts(self, raw: RawSample) -> list[Text]:
        """The right texts as training has them, for the held-out loss; none where none is known."""
