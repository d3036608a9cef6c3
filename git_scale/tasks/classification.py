"""Classification by generation: the name of an image's class is its caption, among the names of a file or freely."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from git_scale.config import RunConfig
from git_scale.data.captions import TextRecord, clean_caption
from git_scale.data.class_names import read_named_classes
from git_scale.data.store import RawSample
from git_scale.data.texts import Query, Text, check_choices
from git_scale.data.tokenizer import Tokenizer
from git_scale.errors import ConfigError, DataError
from git_scale.metrics.exact_match import normalize_text
from git_scale.metrics.metric import Prediction
from git_scale.tasks.task import EvaluationContext, Task, TextRequirement, identity_of

if TYPE_CHECKING:
    from git_scale.data.batch import EvalBatch


def _has_name(text: TextRecord) -> bool:
    return any(map(clean_caption, text.captions))


class ClassificationTask(Task):
    """Learns the name of an image's class. An evaluation asks twice: for any text, and for one of the names.

    The paper's three figures for ImageNet are exact_match and contains of the free text, and top_1 among the names.
    top_5 is there with eval.beams of 5 or more.
    """

    metrics: ClassVar = ("exact_match", "contains", "top_1", "top_5", "distinct")
    learns_from: ClassVar = TextRequirement("class names", _has_name)
    asks_about: ClassVar = TextRequirement("images", lambda text: True)

    def __init__(self, run: RunConfig, tokenizer: Tokenizer) -> None:
        super().__init__(run, tokenizer)
        names = read_class_names(run)
        self._names = {normalize_text(name): name for name in names}
        self._choices = self.prompts.choices(names)
        among_all = Query([], [], choices=self._choices)
        try:
            check_choices([among_all], run.eval.max_new_tokens, tokenizer.eos_id)
        except DataError as error:
            raise ConfigError([f"data.class_names={run.data.class_names}: {error}"]) from None
        if len(self._choices) < len(names):
            raise ConfigError([_spelled_alike(names, tokenizer)])

    @classmethod
    def problems_of(cls, run: RunConfig) -> list[str]:
        try:
            read_class_names(run)
        except ConfigError as error:
            return error.problems
        return []

    def texts(self, raw: RawSample, rng: np.random.Generator) -> list[Text]:
        return [self.prompts.caption(self._name_of(raw))]

    def queries(self, raw: RawSample) -> list[Query]:
        names = [self._name_of(raw)] if raw.text.captions else []
        identity = identity_of(raw.text.meta.get("image_id"), raw.key)
        free = Query(self.prompts.prefix([]), names, identity=identity)
        return [free, replace(free, choices=self._choices)]

    def predict(self, batch: EvalBatch, context: EvaluationContext) -> list[Prediction]:
        """One prediction for the two queries of an image: the free text, with the ranking among the names."""
        both = context.generate(batch)
        pairs = zip(both[::2], both[1::2], strict=True)
        return [replace(free, ranking=chosen.ranking) for free, chosen in pairs]

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """With `unknown_names`, the share of the free texts that are no class's name."""
        unknown = [normalize_text(item.generated) not in self._names for item in predictions]
        share = {"unknown_names": sum(unknown) / len(unknown)} if unknown else {}
        return super().score(predictions) | share

    def result_row(self, prediction: Prediction) -> dict[str, Any]:
        return {
            "image_id": prediction.identity,
            "class": prediction.ranking[0],
            "ranking": list(prediction.ranking),
            "text": prediction.generated,
        }

    def _name_of(self, raw: RawSample) -> str:
        name = next(filter(None, map(clean_caption, raw.text.captions)), None)
        if name is None:
            raise DataError("no class name")
        if (known := self._names.get(normalize_text(name))) is None:
            raise DataError(f"its class {name!r} is not in data.class_names={self.run.data.class_names}")
        return known


def read_class_names(run: RunConfig) -> list[str]:
    """The names of data.class_names. Raises ConfigError for a file that is not there, no names, or a name twice."""
    path = run.data.class_names
    if path is None:
        raise ConfigError(
            [
                "data.task=classification chooses among names: set data.class_names=FILE, a class's name per line"
            ]
        )
    key = f"data.class_names={path}"
    try:
        names = [name for _, name in read_named_classes(Path(path))]
    except OSError as error:
        raise ConfigError([f"{key}: {error.strerror}"]) from None
    except ValueError as error:
        raise ConfigError([f"{key}: {error}"]) from None
    if len(names) < 2:
        raise ConfigError([f"{key}: it has {len(names)} names, and a choice takes at least two"])
    if twice := _first_of_kind(names, normalize_text):
        raise ConfigError(
            [f"{key}: two classes are named {twice[0]!r} and {twice[1]!r}: give one another name"]
        )
    return names


def _spelled_alike(names: Iterable[str], tokenizer: Tokenizer) -> str:
    first, second = _first_of_kind(names, lambda name: tuple(tokenizer.encode(name)))
    return f"data.class_names: the tokenizer spells {first!r} and {second!r} alike: rename one of them"


def _first_of_kind(names: Iterable[str], kind: Callable[[str], Hashable]) -> tuple[str, ...]:
    """The first two names of one kind; none where all differ."""
    seen: dict[Hashable, str] = {}
    for name in names:
        if (other := seen.setdefault(kind(name), name)) is not name:
            return other, name
    return ()
