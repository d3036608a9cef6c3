"""The contract between tasks and data: texts to learn, queries to answer, and who makes them of a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from git_scale.data.store import RawSample
from git_scale.data.tokenizer import Tokenizer
from git_scale.errors import DataError


@dataclass(frozen=True)
class Text:
    """Holds a text to learn: `tokens` with begin and end.

    `targets[t]`: tokens[t] is to be predicted from what is before it.
    """

    tokens: list[int]
    targets: list[bool]
    has_image: bool = True

    @property
    def is_caption(self) -> bool:
        """Whether all of it is told by its image, and nothing is given but the begin token."""
        return self.has_image and all(self.targets[1:])


@dataclass(frozen=True)
class Example:
    """Holds what a model is to predict of a text, and what it reads for that.

    Of the next word:      reads begin a dog end,     predicts a dog end at 0 1 2
    Of a masked word:      reads begin a [MASK] end,  predicts dog at 2
    """

    tokens: list[int]
    rows: list[int]
    """Positions in `tokens` at which something is predicted."""
    labels: list[int]
    """The token that is right at each of them."""
    sees_ahead: bool = False
    """Whether each position sees all of `tokens`; else those up to itself."""


def next_words(text: Text) -> Example:
    """Each target from what is before it."""
    targets = [position for position, is_target in enumerate(text.targets) if is_target]
    labels = [text.tokens[position] for position in targets]
    return Example(text.tokens, [position - 1 for position in targets], labels)


ExampleMaker = Callable[[Text, np.random.Generator], Sequence[Example]]
"""Makes of a text an example for each way in which a run's objectives read it: git_scale/objectives/examples.py."""


def next_words_alone(text: Text, rng: np.random.Generator) -> list[Example]:
    """The ExampleMaker of a run that learns the next words."""
    return [next_words(text)]


@dataclass(frozen=True)
class Query:
    """Holds what is asked of a held-out image."""

    prefix: list[int]
    """What the generated text begins with: the begin token, then the question's."""
    references: list[str]
    """Every right text; empty where none is known, as in a test server's data."""
    question: str = ""
    """Empty for a caption."""
    identity: int | str = ""
    """The evaluation server's number of the image or question, else a name that is unique in the data."""
    choices: Mapping[tuple[int, ...], str] = field(default_factory=dict)
    """The only texts that may be generated, each under its tokens without begin and end; none: any text may."""
    domain: str = ""
    """Part of the data that the answer is also scored with apart; empty: none."""


class TextMaker(Protocol):
    """Turns what is stored beside an image into tokens: every task of git_scale/tasks is one."""

    tokenizer: Tokenizer

    def has_image(self, raw: RawSample) -> bool:
        """Whether its texts are about an image; else they are seen without one."""

    def texts(self, raw: RawSample, rng: np.random.Generator) -> list[Text]:
        """At most `data.texts_per_image` texts to learn. Raises DataError when the sample has none."""

    def queries(self, raw: RawSample) -> list[Query]:
        """Everything that an evaluation asks of the sample. Raises DataError when there is nothing."""

    def reference_texts(self, raw: RawSample) -> list[Text]:
        """The right texts as training has them, for the held-out loss; none where none is known."""


def check_choices(queries: Iterable[Query], max_new_tokens: int, end_token: int) -> None:
    """Raises DataError for a text to choose from that generation cannot spell: of those too long, for the longest."""
    choices = [item for query in queries for item in query.choices.items()]
    for tokens, text in choices:
        if not tokens or end_token in tokens:
            raise DataError(f"{text!r} cannot be chosen: the tokenizer has no words for it")
    tokens, text = max(choices, key=lambda item: len(item[0]), default=((), ""))
    if len(tokens) >= max_new_tokens:
        raise DataError(
            f"{text!r} cannot be chosen: it has {len(tokens)} tokens, but eval.max_new_tokens={max_new_tokens},"
            f" the end token included: set eval.max_new_tokens={len(tokens) + 1} or more"
        )
