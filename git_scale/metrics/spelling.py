"""Scores of texts that may be misspelt: answers that were read (ANLS), and words that were recognised.

anls(["Main Sreet"], [["main street"]])              0.909: one letter of 11 is missing
word_accuracy(["OPEN 24"], [["open24!"]])            1.0: lower case, letters and digits alone
"""

from __future__ import annotations

import re
from collections.abc import Callable

from rapidfuzz.distance import Levenshtein

from git_scale.metrics.exact_match import require_references
from git_scale.metrics.metric import Metric

ANLS_THRESHOLD = 0.5
"""Below, an answer is wrong and not misspelt. The published program keeps what is equal to it, where the formula of
the paper (arXiv 1905.13648, equation 1) drops that."""

_NOT_ALPHANUMERIC = re.compile("[^0-9a-z]")


def anls(generated: list[str], references: list[list[str]]) -> list[float]:
    """Normalised Levenshtein similarity (0 to 1) of each text to its best reference, as ST-VQA's server computes it.

    0 below ANLS_THRESHOLD; upper case and runs of blanks are no difference. Raises DataError for lists of different
    length, for none at all, and for a text without a reference.
    """
    return _best("ANLS", _similarity_in_lower_case, generated, references)


def equal_words(generated: list[str], references: list[list[str]]) -> list[float]:
    """1 for a word that equals a reference in lower-case letters a-z and digits alone, as scene text recognition is
    published (arXiv 1904.01906), else 0. Raises DataError as `anls`."""
    return _best("word accuracy", lambda a, b: float(_letters(a) == _letters(b)), generated, references)


def equal_cased_words(generated: list[str], references: list[list[str]]) -> list[float]:
    """1 for a word that equals a reference in every sign, blanks at the ends aside. Raises DataError as `anls`."""
    return _best("cased word accuracy", lambda a, b: float(a.strip() == b.strip()), generated, references)


def edit_similarity(generated: list[str], references: list[list[str]]) -> list[float]:
    """1 - the normalised edit distance (0 to 1) of lower-case letters and digits: ICDAR 2019's 1-N.E.D.

    Raises DataError as `anls`.
    """
    return _best("edit similarity", lambda a, b: _similarity(_letters(a), _letters(b)), generated, references)


def _best(
    metric: str, similarity: Callable[[str, str], float], generated: list[str], references: list[list[str]]
) -> list[float]:
    require_references(metric, generated, references)
    return [
        max(similarity(text, right) for right in texts)
        for text, texts in zip(generated, references, strict=True)
    ]


def _similarity_in_lower_case(generated: str, reference: str) -> float:
    similarity = _similarity(_plain(generated), _plain(reference))
    return similarity if similarity >= ANLS_THRESHOLD else 0.0


def _similarity(a: str, b: str) -> float:
    """1 - edit distance / length of the longer one; 1 for two empty texts."""
    return float(Levenshtein.normalized_similarity(a, b))


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _letters(text: str) -> str:
    """Lower-case letters and digits; all of a text without any, so that one Chinese word is not another."""
    lower = "".join(text.lower().split())
    return _NOT_ALPHANUMERIC.sub("", lower) or lower


ANLS = Metric.mean_of(lambda texts: anls(texts.generated, texts.references))
WORD_ACCURACY = Metric.mean_of(lambda texts: equal_words(texts.generated, texts.references))
WORD_ACCURACY_CASED = Metric.mean_of(lambda texts: equal_cased_words(texts.generated, texts.references))
EDIT_SIMILARITY = Metric.mean_of(lambda texts: edit_similarity(texts.generated, texts.references))
