"""How a class that was generated as a text is judged: by the text itself, and by the ranking among the names.

The paper gives three figures for ImageNet: the text equals the name (exact_match), the text holds the name, and the
best name when nothing else can be generated (top_1).
"""

from __future__ import annotations

from git_scale.metrics.exact_match import is_match, normalize_text
from git_scale.metrics.metric import Metric, Predictions


def contains(texts: Predictions) -> list[bool]:
    """Whether each text holds a reference, anywhere: "a red fox" holds "red fox", and "fox" holds "ox"."""
    return [
        any(normalize_text(right) in normalize_text(item.generated) for right in item.references)
        for item in texts
    ]


def among_best(texts: Predictions, best: int) -> list[bool] | None:
    """Whether the first `best` names of each ranking hold a reference; None where fewer were ranked."""
    if any(len(item.ranking) < best for item in texts):
        return None
    return [any(is_match(name, item.references) for name in item.ranking[:best]) for item in texts]


CONTAINS = Metric.mean_of(contains)
TOP_1 = Metric.mean_of(lambda texts: among_best(texts, 1))
TOP_5 = Metric.mean_of(lambda texts: among_best(texts, 5))
