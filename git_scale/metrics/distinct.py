"""How many different texts there are: a model that says one thing of every image has nearly none."""

from __future__ import annotations

from collections.abc import Sequence

from git_scale.metrics.exact_match import normalize_text
from git_scale.metrics.metric import Metric


def distinct_share(texts: Sequence[str]) -> float:
    """Different texts after `normalize_text`, as a share of all."""
    return len(set(map(normalize_text, texts))) / len(texts)


DISTINCT = Metric(lambda texts: distinct_share(texts.generated), better=None)
DISTINCT_REFERENCES = Metric(
    lambda texts: distinct_share([references[0] for references in texts.references]), better=None
)
