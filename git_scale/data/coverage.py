"""How much of a data set's texts a tokenizer can spell."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from git_scale.data.captions import TextRecord, clean_caption
from git_scale.data.store import SampleStore
from git_scale.data.tokenizer import Tokenizer
from git_scale.errors import DataError
from git_scale.stop import check_stop

log = logging.getLogger(__name__)

SAMPLES = 256  # of a run's start
IN_A_ROW = 16  # of them, so that few shards are opened
REFUSE_ABOVE = 0.5  # share of lost characters: the tokenizer is of another script
WARN_ABOVE = 0.001  # share of lost characters; sentencepiece's default coverage alone loses up to 0.0005
NAMED = 5  # lost stretches that a report names
AROUND = 16  # characters before and behind a lost stretch in its example


@dataclass
class TokenizerCoverage:
    """Counts characters (white space is none), and the stretches of text that no piece covers."""

    texts: int = 0
    characters: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    """How often each stretch became the unknown token."""
    in_bytes: Counter[str] = field(default_factory=Counter)
    """How often each was spelled in bytes."""
    examples: dict[str, str] = field(default_factory=dict)
    """A piece of text around each."""

    @property
    def lost(self) -> float:
        """Share of the characters that became the unknown token, 0 to 1."""
        return self._share(self.unknown)

    def describe(self) -> str:
        """One line."""
        if not self.unknown and not self.in_bytes:
            return f"the vocabulary has pieces for all {self.characters:,} characters of {self.texts:,} texts"
        parts = [
            f"{_percent(self._share(found))} % of {self.characters:,} characters {become}: {self._named(found)}"
            for found, become in (
                (self.unknown, "are lost, they become the unknown token"),
                (self.in_bytes, "are spelled in bytes"),
            )
            if found
        ]
        return "; ".join(parts)

    def _share(self, found: Counter[str]) -> float:
        return sum(len(stretch) * count for stretch, count in found.items()) / max(1, self.characters)

    def _named(self, found: Counter[str]) -> str:
        named = [
            f"{stretch!r} x {count} ({self.examples[stretch]!r})"
            for stretch, count in found.most_common(NAMED)
        ]
        more = f" and {len(found) - NAMED:,} more" if len(found) > NAMED else ""
        return ", ".join(named) + more


def coverage_of(tokenizer: Tokenizer, texts: Iterable[str]) -> TokenizerCoverage:
    """How the tokenizer spells `texts`, which are cleaned first as in training. Raises Stopped."""
    found = TokenizerCoverage()
    for text in filter(None, map(clean_caption, texts)):
        check_stop()
        found.texts += 1
        found.characters += sum(map(len, text.split()))
        uncovered = tokenizer.uncovered(text)
        for stretches, counter in ((uncovered.unknown, found.unknown), (uncovered.in_bytes, found.in_bytes)):
            for stretch in stretches:
                counter[stretch] += 1
                if stretch not in found.examples:
                    at = max(0, text.find(stretch))
                    around = text[max(0, at - AROUND) : at + len(stretch) + AROUND]
                    found.examples[stretch] = around
    return found


def report_coverage(tokenizer: Tokenizer, store: SampleStore, key: str) -> None:
    """Logs how the tokenizer spells a sample of the store's texts; a warning when too much is lost.

    `key`: where the store was given. Raises DataError when most is lost.
    """
    found = coverage_of(
        tokenizer, (text for number in _spread(len(store)) for text in _texts_at(store, number))
    )
    if not found.texts:
        return  # the loader says why
    said = f"{tokenizer.path}: of a sample of the texts of {key} {found.describe()}"
    remedy = "train a tokenizer on them with tools/train_tokenizer.py"
    if found.lost > REFUSE_ABOVE:
        raise DataError(f"{said}: too much to learn from; {remedy}, or leave this source out")
    if found.lost > WARN_ABOVE:
        log.warning("%s; %s", said, remedy)
    else:
        log.info("%s", said)


def _spread(count: int) -> Iterator[int]:
    """At most SAMPLES numbers below `count`: runs of neighbours, evenly apart."""
    if count <= SAMPLES:
        yield from range(count)
        return
    for start in np.linspace(0, count - IN_A_ROW, SAMPLES // IN_A_ROW).astype(np.int64):
        yield from range(int(start), int(start) + IN_A_ROW)


def _texts_at(store: SampleStore, number: int) -> list[str]:
    try:
        return list(texts_of(store.read_text(number)))
    except DataError:
        return []


def texts_of(record: TextRecord) -> Iterator[str]:
    """Every caption, question and answer of a sample."""
    yield from record.captions
    yield from record.own_clip_captions
    for question in record.questions:
        yield question["question"]
        yield from question.get("answers", [])


def _percent(share: float) -> str:
    """Two digits that count, but 100 for all."""
    return f"{float(f'{100 * share:.2g}'):g}"
