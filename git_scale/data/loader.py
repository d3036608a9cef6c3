"""From shards to batches.

    position -> SampleOrder -> (epoch, index) -> RawSample -> pixels | tokens -> Sample -> Batch

    positions of one step, dp = 2, two micro-batches of 4:
    | rank 0, a = 0 | rank 1, a = 0 | rank 0, a = 1 | rank 1, a = 1 |
    0               4               8              12              16

Everything random is drawn from (seed, epoch, index), so a batch depends on its positions alone: not on the
worker that made it, nor on when the run was started. The state of the loader is one integer.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from multiprocessing.synchronize import Event
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from git_scale.config import RunConfig
from git_scale.data.batch import Batch, EvalBatch, EvalSample, Sample, Text, black, collate, collate_eval
from git_scale.data.images import crop_resized, decode, prepare, random_box
from git_scale.data.order import SampleOrder
from git_scale.data.shards import RawSample, ShardSet, naming
from git_scale.data.tasks import build_task
from git_scale.data.tokenizer import Tokenizer
from git_scale.errors import DataError

GAIN_IMAGES = 256  # looked at with a wrong picture too: the gain's error is then a few hundredths of a nat
OTHERS_TRIED = 16  # next samples among which one with other texts is looked for
PREFETCH = 4  # batches per worker: rides out a slow read, at 5 MB per batch of 32 pictures


class TrainSamples(Dataset[Sample]):
    """The sample of (position, image_size), prepared for training."""

    def __init__(self, run: RunConfig, shards: ShardSet, tokenizer: Tokenizer) -> None:
        self.run, self.shards = run, shards
        self.task = build_task(run, tokenizer)
        self.blank = Text([tokenizer.bos_id, tokenizer.eos_id], [False, False])
        self.order = SampleOrder(shards.counts, run.seed)

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        position, size = item
        epoch, index = self.order.sample(position)
        rng = np.random.default_rng((self.run.seed, epoch, index))
        try:
            return self._prepare(self.shards.read(index), size, rng)
        except DataError as error:
            key = self.shards.key(index)
            return Sample(key, black(self.run.model.frames, size), self._fill([]), problem=str(error))

    def _prepare(self, raw: RawSample, size: int, rng: np.random.Generator) -> Sample:
        with naming(raw.key):
            pictures = decode_pictures(raw, self.run.model.frames, float(rng.random()))
            images = np.stack(self._pixels(pictures, size, rng))
            texts = self.task.texts(raw, rng)
        return Sample(raw.key, images, self._fill(texts))

    def _pixels(self, pictures: list[Image.Image], size: int, rng: np.random.Generator) -> list[np.ndarray]:
        """All frames alike. A question may ask for what a crop would cut off: only `crop` draws one."""
        data = self.run.data
        if data.resize != "crop":
            return [prepare(picture, data, size) for picture in pictures]
        box = random_box(*pictures[0].size, data.crop_scale, rng)
        return [crop_resized(picture, box, size) for picture in pictures]

    def _fill(self, texts: list[Text]) -> list[Text]:
        """As many texts as every sample has; those that are missing have no targets."""
        return texts + [self.blank] * (self.run.data.texts_per_image - len(texts))


class EvalSamples(Dataset[EvalSample]):
    """Sample number `index`, prepared for an evaluation; an empty slot for -1."""

    def __init__(self, run: RunConfig, shards: ShardSet, tokenizer: Tokenizer) -> None:
        self.data, self.shards = run.data, shards
        self.task = build_task(run, tokenizer)
        self.frames, self.size = run.model.frames, run.model.encoder.image_size
        self.asked, self.count = run.eval.images, scored_images(run, shards)

    def __getitem__(self, index: int) -> EvalSample:
        if index < 0:
            return EvalSample(index, "", black(self.frames, self.size), [])
        try:
            sample = self._prepare(index)
        except DataError as error:
            return EvalSample(index, self.shards.key(index), black(self.frames, self.size), [], str(error))
        queries = sample.queries if index < self.asked else []  # the others are for the held-out loss alone
        other = self._other_picture(sample) if index < GAIN_IMAGES else None
        return replace(sample, queries=queries, other=other)

    def _prepare(self, index: int) -> EvalSample:
        raw = self.shards.read(index)
        with naming(raw.key):
            pictures = decode_pictures(raw, self.frames, 0.5)
            images = np.stack([prepare(picture, self.data, self.size) for picture in pictures])
            texts = self.task.reference_texts(raw)
            return EvalSample(index, raw.key, images, self.task.queries(raw), texts=texts)

    def _other_picture(self, sample: EvalSample) -> np.ndarray | None:
        """That of the next usable sample with other texts: the same for any number of ranks and workers."""
        for step in range(1, min(self.count, OTHERS_TRIED + 1)):
            try:
                other = self._prepare((sample.index + step) % self.count)
            except DataError:
                continue
            if other.texts != sample.texts:
                return other.images
        return None


def scored_images(run: RunConfig, shards: ShardSet) -> int:
    """How many of the first samples an evaluation looks at; of the first `eval.images` it generates texts."""
    return min(len(shards), max(run.eval.images, GAIN_IMAGES))


def decode_pictures(raw: RawSample, frames: int, offset: float) -> list[Image.Image]:
    """The image, or `frames` equally spaced frames of the clip, all of the first one's size.

    `offset` in [0, 1) places each within its part of the clip: 0.5 for the middle, random in training.
    """
    if frames == 1:
        if raw.image is None:
            raise DataError("no image, only frames of a clip; set model.frames to use those")
        return [decode(raw.image)]
    if not raw.frames:
        raise DataError(f"no frames of a clip (0.jpg, 1.jpg, ...), but model.frames={frames}")
    numbers = [int((part + offset) * len(raw.frames) / frames) for part in range(frames)]
    pictures = [decode(raw.frames[number]) for number in numbers]
    if len({picture.size for picture in pictures}) > 1:
        raise DataError("the frames of the clip differ in size")
    return pictures


def step_image_size(run: RunConfig, start: int) -> int:
    """The side of all pictures of the step that starts at position `start`."""
    sizes = run.train_image_sizes
    return sizes[int(np.random.default_rng((run.seed, start)).integers(len(sizes)))]


class TrainPositions:
    """Batch sampler: the (position, image_size) of each micro-batch of one rank, without end.

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


def build_train_loader(
    run: RunConfig, shards: ShardSet, tokenizer: Tokenizer, dp_rank: int, dp: int, start_position: int
) -> Iterable[Batch]:
    """Endless micro-batches of this rank from `start_position` (samples seen so far) on.

    A step takes run.accumulation(dp) of them.
    """
    samples = TrainSamples(run, shards, tokenizer)
    positions = TrainPositions(run, dp_rank, dp, start_position)
    collate_fn = functools.partial(collate, pad_id=tokenizer.pad_id)
    return _build_loader(samples, positions, collate_fn, run.data.workers)


def build_eval_loader(
    run: RunConfig, shards: ShardSet, tokenizer: Tokenizer, dp_rank: int, dp: int
) -> Iterable[EvalBatch]:
    """The first `scored_images`, dealt out to the ranks, which all get the same number of batches."""
    batches = eval_indices(scored_images(run, shards), run.train.micro_batch, dp_rank, dp)
    samples = EvalSamples(run, shards, tokenizer)
    collate_fn = functools.partial(collate_eval, pad_id=tokenizer.pad_id)
    return _build_loader(samples, batches, collate_fn, min(run.data.workers, len(batches)))


def _build_loader(
    samples: Dataset[Any], batches: Iterable[list[Any]], collate_fn: Callable[[Any], Any], workers: int
) -> DataLoader[Any]:
    options: dict[str, Any] = {}
    if workers:
        # fork: spawn would import torch in each worker (2.5 s of a core, 64 times on a node of 8 ranks);
        # workers of a forkserver take its death for their parent's, and a SIGTERM to the job step kills it
        options = {
            "multiprocessing_context": multiprocessing.get_context("fork"),
            "worker_init_fn": functools.partial(_outlive_signals, _closing()),
            "prefetch_factor": PREFETCH,
            "persistent_workers": True,
        }
    return DataLoader(
        samples,
        batch_sampler=batches,
        collate_fn=collate_fn,
        num_workers=workers,  # torch itself gives each of them one thread
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # of its own: the start of a loader must not move the run's random state
        **options,
    )


@functools.cache
def _closing() -> Event:
    """Set when this process comes to its end, before multiprocessing's own clean-up (registered earlier)."""
    event = multiprocessing.get_context("fork").Event()
    atexit.register(event.set)
    return event


def _outlive_signals(closing: Event, worker: int) -> None:
    """Lets a worker go on when the whole job step gets a signal: its parent still wants to save a checkpoint.

    It also replaces the parent's handlers, which a fork inherits. When the parent is at its end, SIGTERM is
    multiprocessing's way to end the workers that are left, and ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0) if closing.is_set() else None)
