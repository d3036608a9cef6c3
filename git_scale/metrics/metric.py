"""What a metric is: a number for the texts of an evaluation, and whether more of it is better.

EXACT_MATCH = Metric.mean_of(lambda texts: [is_match(text.generated, text.references) for text in texts])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Shared = TypeVar("Shared")

DOMAINS = ("in-domain", "near-domain", "out-domain")
"""Of nocaps: whether what an image shows is in COCO's captions, in part, or not at all."""


@dataclass(frozen=True)
class Prediction:
    """One generated text."""

    index: int
    """Number of the sample in the shards."""
    key: str
    identity: int | str
    question: str
    generated: str
    references: list[str]
    ranking: tuple[str, ...] = ()
    """The best of a closed set of texts, the best first, where the answer was chosen among them."""
    domain: str = ""
    """One of DOMAINS where the sample says so."""


class Predictions(Sequence[Prediction]):
    """The predictions that a metric is taken over, in the order of the shards."""

    def __init__(self, items: Sequence[Prediction]) -> None:
        self._items = list(items)
        self._shared: dict[Callable[[Predictions], Any], Any] = {}

    @classmethod
    def of(cls, items: Sequence[Prediction]) -> Predictions:
        """The same where they are such, so that what is shared is worked out once for all who ask."""
        return items if isinstance(items, cls) else cls(items)

    @property
    def with_references(self) -> Predictions:
        """Those that have a right text."""
        return self.shared(_with_references)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, number: Any) -> Any:
        return self._items[number]

    @property
    def generated(self) -> list[str]:
        return [item.generated for item in self._items]

    @property
    def references(self) -> list[list[str]]:
        return [item.references for item in self._items]

    def shared(self, compute: Callable[[Predictions], Shared]) -> Shared:
        """compute(self), worked out once: BLEU-1 to BLEU-4 come from the same counts."""
        if compute not in self._shared:
            self._shared[compute] = compute(self)
        found: Shared = self._shared[compute]
        return found


def _with_references(texts: Predictions) -> Predictions:
    known = [item for item in texts if item.references]
    return texts if len(known) == len(texts) else Predictions(known)


@dataclass(frozen=True)
class Metric:
    """`compute` is given at least one prediction; None means that there is nothing to say, and is left out."""

    compute: Callable[[Predictions], float | None]
    better: Literal["higher", "lower"] | None = "higher"
    """None: it describes the texts and judges nothing, so that checkpoint.best cannot name it."""
    needs_references: bool = True
    """Whether it is taken over the predictions alone that have a right text."""
    of_each: Callable[[Predictions], Sequence[float] | None] | None = None
    """The value of each prediction, where the metric is their mean: intervals are drawn from them."""

    @classmethod
    def mean_of(cls, of_each: Callable[[Predictions], Sequence[float] | None], **options: Any) -> Metric:
        """The metric that is the mean of a value of each prediction."""

        def compute(texts: Predictions) -> float | None:
            values = of_each(texts)
            return None if values is None else float(sum(values)) / len(values)

        return cls(compute, of_each=of_each, **options)

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower", None):
            raise ValueError(
                f"better={self.better!r}: a metric is better when it is 'higher' or 'lower', or None"
            )


def flaw_of(entry: object) -> str:
    """Why an entry of METRICS cannot be used; empty for one that can."""
    return (
        ""
        if isinstance(entry, Metric)
        else f"{entry!r} is no Metric: give METRICS.add(NAME, Metric(FUNCTION))"
    )
