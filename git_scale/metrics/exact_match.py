"""Exact match: the share of generated texts that equal a reference."""

from __future__ import annotations

from git_scale.errors import DataError
from git_scale.metrics.metric import Metric


def require_references(metric: str, generated: list[str], references: list[list[str]]) -> None:
    """Raises DataError when `metric` is not defined: unequal lengths, no text, a text without a reference."""
    if len(generated) != len(references):
        raise DataError(
            f"{metric}: {len(generated)} generated texts but {len(references)} lists of references"
        )
    if not generated:
        raise DataError(f"{metric}: no generated texts; is the held-out folder empty?")
    for number, texts in enumerate(references):
        if not texts:
            raise DataError(f"{metric}: text {number} ({generated[number]!r}) has no reference")


def is_match(generated: str, references: list[str]) -> bool:
    """Whether the text equals any reference after `normalize_text`."""
    return normalize_text(generated) in map(normalize_text, references)


def normalize_text(text: str) -> str:
    """Lower case, runs of white space as one blank, none at the ends; punctuation and accents stay."""
    return " ".join(text.casefold().split())


EXACT_MATCH = Metric.mean_of(lambda texts: [is_match(item.generated, item.references) for item in texts])
