"""From shards to batches.

    position -> SampleOrder -> (epoch, index) -> RawSample -> pixels | tokens -> Sample -> Batch

    positions of one step, dp = 2, two micro-batches of 4:
    | rank 0, a = 0 | rank 1, a = 0 | rank 0, a = 1 | rank 1, a = 1 |
    0               4               8              12              16

Everything random is drawn from (seed, epoch, index), so a batch depends on its positions alone: not on the
worker that made it, nor on when the run was started. The state of the loader is one integer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from git_scale.config import RunConfig
from git_scale.data.batch import Batch, EvalBatch, EvalSample, Sample, black, collate, collate_eval
from git_scale.data.order import Order, SampleOrder
from git_scale.data.pixels import heldout_pixels, training_pixels
from git_scale.data.quarantine import Quarantine
from git_scale.data.reader import WatchedReader
from git_scale.data.store import RawSample, SampleStore, naming
from git_scale.data.texts import Example, ExampleMaker, Text, TextMaker, check_choices, next_words_alone
from git_scale.data.worker_batches import BatchSource, WorkerBatches, batches_in_process
from git_scale.errors import ConfigError, DataError

GAIN_IMAGES = 256  # looked at with a wrong image too: the gain's error is then a few hundredths of a nat
OTHERS_TRIED = 16  # next samples among which one with other texts is looked for


class Dataset(Protocol):
    """Gives samples by what stands for one in a batch of the sampler, read through one reader."""

    reader: WatchedReader

    def __getitem__(self, item: Any) -> Any: ...


class TrainDataset:
    """Prepares the sample of (position, image_size) for training."""

    def __init__(
        self, run: RunConfig, reader: WatchedReader, task: TextMaker, order: Order, examples: ExampleMaker
    ) -> None:
        self.run, self.reader, self.task, self.order, self.examples = run, reader, task, order, examples
        self.blank = Text([task.tokenizer.bos_id, task.tokenizer.eos_id], [False, False])

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        position, size = item
        epoch, index = self.order.sample(position)
        # Numbers of their own, so that what is drawn of an image is the same whatever is learned of it.
        rng, of_texts, of_patches = (
            np.random.default_rng((self.run.seed, epoch, index, *purpose)) for purpose in ((), (1,), (2,))
        )
        blank, problem = black(self.run.model.frames, size), None
        try:
            key, images, texts = self._prepare(self.reader.read(index), size, rng)
        except DataError as error:
            key, images, texts, problem = self.reader.key(index), blank, [], str(error)
        return Sample(
            key,
            blank if images is None else images,
            [self.examples(text, of_texts) for text in self._fill(texts)],
            problem,
            draw=int(of_patches.integers(2**62)) if self.run.model.encoder.patch_drop_rate else None,
            has_image=images is not None,
        )

    def _prepare(
        self, raw: RawSample, size: int, rng: np.random.Generator
    ) -> tuple[str, np.ndarray | None, list[Text]]:
        with naming(raw.key):
            images = training_pixels(self.run, raw, size, rng) if self.task.has_image(raw) else None
            texts = self.task.texts(raw, rng)
        self._check_count(raw.key, texts)
        return raw.key, images, texts

    def _check_count(self, key: str, texts: list[Text]) -> None:
        if len(texts) > (most := self.run.data.texts_per_image):
            raise ConfigError(
                [
                    f"data.texts_per_image={most}, but {type(self.task).__name__} gave {len(texts)} texts of {key}:"
                    f" memory was planned for {most}; let it give no more, or set data.texts_per_image={len(texts)}"
                ]
            )

    def _fill(self, texts: list[Text]) -> list[Text]:
        """As many texts as every sample has; those that are missing have no targets."""
        return texts + [self.blank] * (self.run.data.texts_per_image - len(texts))


class EvalDataset:
    """Prepares sample number `index` for an evaluation; an empty slot for -1."""

    def __init__(
        self,
        run: RunConfig,
        reader: WatchedReader,
        task: TextMaker,
        examples: Mapping[str, ExampleMaker],
    ) -> None:
        self.data, self.reader, self.task, self.examples = run.data, reader, task, examples
        self.frames, self.size = run.model.frames, run.model.encoder.image_size
        self.asked, self.count = run.eval.images, scored_images(run, reader.store)
        self.new_tokens = run.eval.max_new_tokens

    def __getitem__(self, index: int) -> EvalSample:
        nothing = EvalSample(index, "", black(self.frames, self.size), [], examples=self._examples(index, []))
        if index < 0:
            return nothing
        try:
            sample = self._prepare(index)
        except DataError as error:
            return replace(nothing, key=self.reader.key(index), problem=str(error))
        queries = sample.queries if index < self.asked else []  # the others are for the held-out loss alone
        other = self._other_image(sample) if index < GAIN_IMAGES and sample.has_image else None
        return replace(sample, queries=queries, other=other)

    def _prepare(self, index: int) -> EvalSample:
        raw = self.reader.read(index)
        with naming(raw.key):
            if has_image := self.task.has_image(raw):
                images = heldout_pixels(self.data, raw, self.frames, self.size)
            else:
                images = black(self.frames, self.size)
            texts, queries = self.task.reference_texts(raw), self.task.queries(raw)
            check_choices(queries, self.new_tokens, self.task.tokenizer.eos_id)
            return EvalSample(
                index,
                raw.key,
                images,
                queries,
                texts=texts,
                examples=self._examples(index, texts),
                has_image=has_image,
            )

    def _examples(self, index: int, texts: list[Text]) -> dict[str, list[Example]]:
        """By objective, the same at every evaluation."""
        made = {}
        for name, make in self.examples.items():
            drawn = np.random.default_rng((0, max(index, 0)))
            made[name] = [example for text in texts for example in make(text, drawn)]
        return made

    def _other_image(self, sample: EvalSample) -> np.ndarray | None:
        """That of the next usable sample with other texts: the same for any number of ranks and workers."""
        for step in range(1, min(self.count, OTHERS_TRIED + 1)):
            try:
                other = self._prepare((sample.index + step) % self.count)
            except DataError:
                continue
            if other.texts != sample.texts:
                return other.images
        return None


def scored_images(run: RunConfig, store: SampleStore) -> int:
    """How many of the first samples an evaluation looks at; of the first `eval.images` it generates texts."""
    return min(len(store), max(run.eval.images, GAIN_IMAGES))


def step_image_size(run: RunConfig, start: int) -> int:
    """The side of all images of the step that starts at position `start`."""
    sizes = run.train_image_sizes
    return sizes[int(np.random.default_rng((run.seed, start)).integers(len(sizes)))]


class TrainBatchSampler:
    """Yields the (position, image_size) of each micro-batch of one rank, without end.

    The positions of a step over all ranks and micro-batches are `global_batch` consecutive ones for any
    (dp, micro_batch), so a run may go on with another number of ranks.
    """

    def __init__(self, run: RunConfig, dp_rank: int, dp: int, start: int) -> None:
        self.run, self.dp_rank, self.dp, self.start = run, dp_rank, dp, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        micro_batch, start = self.run.train.micro_batch, self.start
        while True:
            size = step_image_size(self.run, start)
            for micro_step in range(self.run.accumulation(self.dp)):
                first = start + (micro_step * self.dp + self.dp_rank) * micro_batch
                yield [(position, size) for position in range(first, first + micro_batch)]
            start += self.run.train.global_batch


def eval_indices(images: int, micro_batch: int, dp_rank: int, dp: int) -> list[list[int]]:
    """The numbers in each batch of one rank: dp_rank, dp_rank + dp, ...; -1 where others have one more."""
    slots = [index if index < images else -1 for index in range(dp_rank, -(-images // dp) * dp, dp)]
    return [slots[first : first + micro_batch] for first in range(0, len(slots), micro_batch)]


@dataclass(frozen=True)
class Loader(Iterable[Any]):
    """Yields batches of samples, from the beginning whenever it is iterated over."""

    dataset: Dataset
    batches: Iterable[list[Any]]
    collate: Callable[[list[Any]], Any]
    workers: int
    timeout_s: float

    def __iter__(self) -> Iterator[Any]:
        source = BatchSource(self.dataset.reader, self.make, _pinned, self.timeout_s)
        if self.workers:
            return WorkerBatches(source, self.batches, self.workers)
        return batches_in_process(source, self.batches)

    def make(self, items: list[Any]) -> Any:
        batch = self.collate([self.dataset[item] for item in items])
        self.dataset.reader.rest()
        return batch


def build_train_loader(
    run: RunConfig,
    store: SampleStore,
    task: TextMaker,
    dp_rank: int,
    dp: int,
    start_position: int,
    quarantine: Quarantine | None = None,
    order: Order | None = None,
    examples: ExampleMaker = next_words_alone,
) -> Iterable[Batch]:
    """Endless micro-batches of this rank from `start_position` (samples seen so far) on.

    `order`: of a mixture; none: that of a single source. `examples`: what is learned of a text.
    A step takes run.accumulation(dp) of them. Waiting for one raises Stopped after a stop request or when a sample
    takes too long, LoaderError when workers keep dying.
    """
    order = order or SampleOrder(store.counts, run.seed)
    dataset = TrainDataset(run, WatchedReader(store, quarantine), task, order, examples)
    sampler = TrainBatchSampler(run, dp_rank, dp, start_position)
    images_of = run.parallel.tp if run.parallel.sequence else 1
    collate_fn = functools.partial(collate, pad_id=task.tokenizer.pad_id, images_of=images_of)
    return Loader(dataset, sampler, collate_fn, run.data.workers, run.data.sample_timeout_s)


def build_eval_loader(
    run: RunConfig,
    store: SampleStore,
    task: TextMaker,
    dp_rank: int,
    dp: int,
    quarantine: Quarantine | None = None,
    examples: Mapping[str, ExampleMaker] | None = None,
) -> Iterable[EvalBatch]:
    """The first `scored_images`, dealt out to the ranks, which all get the same number of batches.

    `examples`: of objectives by name that read a text in a way of their own.
    """
    batches = eval_indices(scored_images(run, store), run.train.micro_batch, dp_rank, dp)
    dataset = EvalDataset(run, WatchedReader(store, quarantine), task, examples or {})
    collate_fn = functools.partial(collate_eval, pad_id=task.tokenizer.pad_id)
    workers = min(run.data.workers, len(batches))
    return Loader(dataset, batches, collate_fn, workers, run.data.sample_timeout_s)


def _pinned(batch: Any) -> Any:
    """Copies of pinned memory to a GPU run beside its computation."""
    return batch.pin_memory() if torch.cuda.is_available() and isinstance(batch, Batch) else batch
