"""Several sources as one: which of them stands at which position of the training stream, and their samples.

    data.sources: captions 0.7, questions 0.3

    position   0  1  2  3  4  5  6  7  8  9
    source     c  q  c  c  q  c  c  c  q  c       its share of the positions so far, give or take one
    sample     0  0  1  2  1  3  4  5  2  6       in its own order: each of its epochs holds every sample once

All of it is a function of the position, so that the state of the data stays one integer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import PurePath

import numpy as np

from git_scale.config import DataConfig, SourceConfig
from git_scale.data.captions import TextRecord
from git_scale.data.fingerprint import mixed_fingerprint
from git_scale.data.order import SampleOrder
from git_scale.data.store import RawSample, SampleStore
from git_scale.data.store_share import StoreShare
from git_scale.data.texts import Query, Text, TextMaker
from git_scale.errors import DataError


def training_sources(data: DataConfig) -> dict[str, SourceConfig]:
    """What is trained on, with its task, by where it was given: `data.train=PATH`, `data.sources[1]=PATH`."""
    given = {f"data.sources[{number}]={source.path}": source for number, source in enumerate(data.sources)}
    if data.train is not None:
        given[f"data.train={data.train}"] = SourceConfig(path=data.train)
    return {key: one.model_copy(update={"task": one.task or data.task}) for key, one in given.items()}


def tasks_of(data: DataConfig) -> list[str]:
    """Of a run: data.task, and those of its sources."""
    return list(dict.fromkeys([data.task, *(str(source.task) for source in training_sources(data).values())]))


def describe_sources(data: DataConfig) -> str:
    """One line: `data.sources[0]=data/coco (weight 0.7, caption), data.sources[1]=data/vqa (weight 0.3, vqa)`."""
    return ", ".join(
        f"{key} (weight {source.weight:g}, {source.task})" for key, source in training_sources(data).items()
    )


class SourceSchedule:
    """Deals positions out to sources in proportion to their weights, by halving the list of sources again and again.

    Of the first p positions round(p * w) go to the first half, whose share of the weights is w, and the others to the
    second half. A halving is at most 0.5 off, so a source is at most half the number of halvings to it off.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        exact = [Fraction(weight) for weight in weights]
        self.shares = [weight / sum(exact) for weight in exact]
        self._halves: dict[tuple[int, int], tuple[int, int, int]] = {}
        self._halve(0, len(exact))

    def _halve(self, first: int, end: int) -> None:
        if end - first > 1:
            middle = (first + end) // 2
            share = Fraction(sum(self.shares[first:middle]), sum(self.shares[first:end]))
            self._halves[first, end] = middle, share.numerator, share.denominator
            self._halve(first, middle)
            self._halve(middle, end)

    def at(self, position: int) -> tuple[int, int]:
        """The source at `position`, and how many of its samples stand before."""
        first, end = 0, len(self.shares)
        while end - first > 1:
            middle, part, whole = self._halves[first, end]
            before = _rounded(position, part, whole)
            if _rounded(position + 1, part, whole) > before:
                position, end = before, middle
            else:
                position, first = position - before, middle
        return first, position

    def counts(self, positions: int) -> list[int]:
        """How many of the first `positions` each source has."""
        return list(self._counts(positions, 0, len(self.shares)))

    def _counts(self, positions: int, first: int, end: int) -> Iterator[int]:
        if end - first == 1:
            yield positions
            return
        middle, part, whole = self._halves[first, end]
        before = _rounded(positions, part, whole)
        yield from self._counts(before, first, middle)
        yield from self._counts(positions - before, middle, end)


def _rounded(positions: int, part: int, whole: int) -> int:
    """positions * part / whole to the nearest whole number, halves upwards, without an error at any size."""
    return (2 * positions * part + whole) // (2 * whole)


class MixtureOrder:
    """Gives each source's order at the positions that are its own."""

    def __init__(self, counts: Sequence[np.ndarray], schedule: SourceSchedule, seed: int) -> None:
        self._schedule = schedule
        self._orders = [SampleOrder(each, seed, stream=stream) for stream, each in enumerate(counts)]
        self._firsts = np.cumsum([0, *(order.size for order in self._orders)]).tolist()

    def sample(self, position: int) -> tuple[int, int]:
        """(epoch of its source, number in the mixture) at `position` of the stream."""
        source, own = self._schedule.at(position)
        epoch, index = self._orders[source].sample(own)
        return epoch, self._firsts[source] + index


class Mixture:
    """Gives the samples of all sources, one source's behind another's; of a single one they are as they were.

    Keys of several sources begin with the source's name: `coco/train/SHARD.tar:KEY`.
    """

    def __init__(self, data: DataConfig, stores: Sequence[SampleStore]) -> None:
        """`stores`: of the training_sources, of which data.share is taken."""
        self.sources = list(training_sources(data).values())
        stores = [store if data.share == 1 else StoreShare(store, data.share) for store in stores]
        self.stores = stores
        self.schedule = SourceSchedule([source.weight for source in self.sources])
        self.names = source_names(self.sources)
        self.counts = np.concatenate([store.counts for store in stores])
        terms = [
            (f"{share} {source.task}", store.fingerprint)
            for share, source, store in zip(self.schedule.shares, self.sources, stores, strict=True)
        ]
        is_plain = len(stores) == 1 and self.sources[0].task == data.task
        self.fingerprint = stores[0].fingerprint if is_plain else mixed_fingerprint(terms)
        self._ends = np.cumsum([len(store) for store in stores])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def contents(self) -> np.ndarray:
        return np.concatenate([store.contents for store in self.stores])

    def order(self, seed: int) -> MixtureOrder:
        return MixtureOrder([store.counts for store in self.stores], self.schedule, seed)

    def key(self, number: int) -> str:
        source, own = self._place(number)
        return self._prefix(source) + self.stores[source].key(own)

    def read(self, number: int) -> RawSample:
        source, own = self._place(number)
        try:
            raw = self.stores[source].read(own)
        except DataError as error:
            raise self._named(source, own, error) from None
        return replace(raw, key=self._prefix(source) + raw.key, source=source)

    def read_text(self, number: int) -> TextRecord:
        source, own = self._place(number)
        try:
            return self.stores[source].read_text(own)
        except DataError as error:
            raise self._named(source, own, error) from None

    def samples_of_each(self, position: int) -> dict[str, int]:
        """How many samples of each source stand before `position`; nothing for a single source."""
        counts = self.schedule.counts(position)
        return dict(zip(self.names, counts, strict=True)) if len(counts) > 1 else {}

    def describe(self, positions: int) -> list[str]:
        """Of each source: how large it is, and what a run of so many samples sees of it."""
        return [
            f"{len(store):,} samples, task {source.task}, {100 * float(share):.3g} % of the run: {seen:,} samples,"
            f" {seen / len(store):.3g} epochs"
            for store, source, share, seen in zip(
                self.stores, self.sources, self.schedule.shares, self.schedule.counts(positions), strict=True
            )
        ]

    def _place(self, number: int) -> tuple[int, int]:
        """Source of a sample, and its number in there."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        source = int(np.searchsorted(self._ends, number, side="right"))
        return source, number - int(self._ends[source]) + len(self.stores[source])

    def _prefix(self, source: int) -> str:
        return f"{self.names[source]}/" if len(self.stores) > 1 else ""

    def _named(self, source: int, own: int, error: DataError) -> DataError:
        """With the source before the key; a message that begins with a path says it already."""
        begins_with_key = str(error).startswith(self.stores[source].key(own))
        return DataError(f"{self._prefix(source) if begins_with_key else ''}{error}")


class PerSourceTask:
    """Turns each sample into texts as the task of its source does."""

    def __init__(self, tasks: Sequence[TextMaker]) -> None:
        self.tokenizer, self._tasks = tasks[0].tokenizer, tasks

    def has_image(self, raw: RawSample) -> bool:
        return self._tasks[raw.source].has_image(raw)

    def texts(self, raw: RawSample, rng: np.random.Generator) -> list[Text]:
        return self._tasks[raw.source].texts(raw, rng)

    def queries(self, raw: RawSample) -> list[Query]:
        return self._tasks[raw.source].queries(raw)

    def reference_texts(self, raw: RawSample) -> list[Text]:
        return self._tasks[raw.source].reference_texts(raw)


def source_names(sources: Sequence[SourceConfig]) -> list[str]:
    """The end of each one's path, and its task where a path stands twice: `coco/train:caption`."""
    paths = [source.path for source in sources]
    short = dict(zip(dict.fromkeys(paths), short_names(list(dict.fromkeys(paths))), strict=True))
    return [
        short[source.path] if paths.count(source.path) == 1 else f"{short[source.path]}:{source.task}"
        for source in sources
    ]


def short_names(paths: Sequence[str]) -> list[str]:
    """The ends of the paths that tell them apart: `coco/train` of data/coco/train beside data/vqa/train."""
    parts = [PurePath(path).parts for path in paths]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(each[-length:]).strip("/") or "." for each in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{number}/{name}" for number, name in enumerate(names)]
