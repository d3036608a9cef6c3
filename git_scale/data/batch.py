"""The contract between the data and the model: what one micro-batch is made of.

B images per micro-batch, F frames per image, K texts per image, T text positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from git_scale.data.texts import Example, Query, Text, next_words


@dataclass(frozen=True)
class Sample:
    """One sample, ready to be stacked: `images` uint8 [F, 3, H, W], the examples of each of K texts."""

    key: str
    images: np.ndarray
    examples: Sequence[Sequence[Example]]
    problem: str | None = None
    draw: int | None = None
    """A random number, by which an encoder leaves out patches of the image; None: it sees all."""
    has_image: bool = True
    """Whether the texts see `images`, which are black where they do not."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch of training.

    A sample that cannot be used is still one of them, so that shapes and the lockstep of the ranks stay: its texts
    have no targets, and weigh nothing in a loss over target tokens.
    """

    images: Tensor
    """uint8 [B, F, 3, H, W]; or of the first samples alone, where the others have no image."""
    tokens: Tensor
    """int64 [B, K, T]: begin, prefix, target, end, padding; or the like with masked words."""
    rows: Tensor
    """int64 [n]: the positions in flat [B*K*T] at which something is predicted."""
    labels: Tensor
    """int64 [n]: the token that is right at each of them."""
    keys: list[str]
    """SHARD.tar:KEY of each sample."""
    problems: list[str]
    """One message per sample that could not be used."""

    visible: Tensor | None = None
    """bool [B, K, T, T]: which tokens each token sees. None: those up to itself."""
    has_image: Tensor | None = None
    """bool [B]: whether the sample's texts see an image. None: all do."""
    readings: tuple[int, ...] = ()
    """How many of `rows` belong to each way of reading texts, one way's behind another's; none: there is one."""
    draws: Tensor | None = None
    """int64 [B]: a number of each image, by which an encoder leaves out patches; None: it sees all."""
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """What an objective's `prepare` has added."""

    @property
    def num_targets(self) -> int:
        return len(self.labels)

    def rows_of(self, reading: int) -> slice:
        """Where the rows of one of the `readings` lie."""
        first = sum(self.readings[:reading])
        return slice(first, first + self.readings[reading]) if self.readings else slice(None)

    def of(self, reading: int) -> Batch:
        """With the rows of one of the `readings` alone."""
        part = self.rows_of(reading)
        return replace(self, rows=self.rows[part], labels=self.labels[part], readings=())

    def to(self, device: torch.device | str) -> Batch:
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Copies from pinned memory run beside the computation."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Batch:
        given = {item.name: getattr(self, item.name) for item in fields(self)}
        moved: dict[str, Any] = {
            name: change(value) for name, value in given.items() if isinstance(value, Tensor)
        }
        extras = {name: change(tensor) for name, tensor in self.extras.items()}
        return replace(self, **moved, extras=extras)


@dataclass(frozen=True)
class EvalSample:
    """One sample of an evaluation; `index` -1: an empty slot."""

    index: int
    key: str
    images: np.ndarray
    queries: list[Query]
    problem: str | None = None
    texts: list[Text] = field(default_factory=list)
    """The right texts as training has them: what the held-out loss is measured on."""
    examples: Mapping[str, list[Example]] = field(default_factory=dict)
    """What objectives by name that read a text in a way of their own learn of each of `texts`."""
    other: np.ndarray | None = None
    """The image of another sample, of which other texts are right; None where none was looked for or found."""
    has_image: bool = True
    """Whether the texts see `images`, which are black where they do not."""


@dataclass(frozen=True)
class EvalBatch:
    """Some samples of an evaluation; a slot that is empty or unusable has no queries."""

    images: Tensor
    """uint8 [B, F, 3, H, W]."""
    queries: list[list[Query]]
    """Of each sample; their number may differ."""
    keys: list[str]
    """SHARD.tar:KEY of each sample."""
    indices: list[int]
    """Number of each sample in the shards; -1: an empty slot, which keeps the ranks in lockstep."""
    problems: list[str]
    """One message per sample that could not be used."""
    texts: Batch
    """The same images with the next words of their right texts to predict; none for a slot without queries."""
    examples: Mapping[str, Batch]
    """The same with what objectives by name learn of these texts in a way of their own."""
    others: Tensor
    """uint8 [B, F, 3, H, W]: of each sample another one's image, its own where `has_other` is False."""
    has_other: list[bool]


def black(frames: int, size: int) -> np.ndarray:
    """The image of a slot that is not used: uint8 [F, 3, H, W]."""
    return np.zeros((frames, 3, size, size), np.uint8)


def collate(samples: list[Sample], pad_id: int = 0, images_of: int = 1) -> Batch:
    """Stacks samples of equal F, H, W and K; T is the longest example's length.

    Texts that are read in several ways stand in the batch once for each: those of one way behind those of another.
    Samples without an image come last, and the batch has no images for them; a multiple of `images_of` there are, at
    least, so that ranks which divide them have as many.
    """
    samples = sorted(samples, key=lambda sample: not sample.has_image)
    count = -(-max(1, sum(sample.has_image for sample in samples)) // images_of) * images_of
    batch = _stack_examples(
        _stack([sample.images for sample in samples[:count]]),
        [sample.examples for sample in samples],
        keys=[sample.key for sample in samples],
        problems=[sample.problem for sample in samples if sample.problem],
        pad_id=pad_id,
    )
    draws = [sample.draw for sample in samples[:count] if sample.draw is not None]
    return replace(
        batch,
        draws=torch.tensor(draws) if draws else None,
        has_image=_has_image([sample.has_image for sample in samples]),
    )


def collate_eval(samples: list[EvalSample], pad_id: int = 0) -> EvalBatch:
    """Stacks samples of equal F, H and W; the numbers of their queries and texts may differ."""
    images = _stack([sample.images for sample in samples])
    keys = [sample.key for sample in samples]
    problems = [sample.problem for sample in samples if sample.problem]
    names = dict.fromkeys(name for sample in samples for name in sample.examples)

    has_image = _has_image([sample.has_image for sample in samples])

    def stack(examples: Sequence[Sequence[Sequence[Example]]]) -> Batch:
        seen = images if has_image is None or has_image.any() else images[:1]
        return replace(_stack_examples(seen, examples, keys, problems, pad_id), has_image=has_image)

    others = [sample.images if sample.other is None else sample.other for sample in samples]
    has_other = [sample.other is not None for sample in samples]
    return EvalBatch(
        images=images,
        queries=[sample.queries for sample in samples],
        keys=keys,
        indices=[sample.index for sample in samples],
        problems=problems,
        texts=stack([[[next_words(text)] for text in sample.texts] for sample in samples]),
        examples={
            name: stack([[[example] for example in sample.examples.get(name, ())] for sample in samples])
            for name in names
        },
        others=_stack(others) if any(has_other) else images,
        has_other=has_other,
    )


def _stack_examples(
    images: Tensor,
    samples: Sequence[Sequence[Sequence[Example]]],
    keys: list[str],
    problems: list[str],
    pad_id: int,
) -> Batch:
    """`samples`: of each the examples of its texts; one with fewer texts than others has padding alone."""
    texts = max(1, *map(len, samples))
    placed = [  # [ways x B x K] in the order of `rows`
        (way, b, way * texts + k, example)
        for b, of_sample in enumerate(samples)
        for k, of_text in enumerate(of_sample)
        for way, example in enumerate(of_text)
    ]
    placed.sort(key=lambda item: item[:3])
    ways = max((way + 1 for way, *_ in placed), default=1)
    length = max((len(example.tokens) for *_, example in placed), default=1)
    tokens = np.full((len(samples), ways * texts, length), pad_id, np.int64)
    rows, labels, readings = [], [], [0] * ways
    for way, b, k, example in placed:
        tokens[b, k, : len(example.tokens)] = example.tokens
        first = (b * ways * texts + k) * length
        rows += [first + row for row in example.rows]
        labels += example.labels
        readings[way] += len(example.rows)
    return Batch(
        images=images,
        tokens=torch.from_numpy(tokens),
        rows=torch.tensor(rows, dtype=torch.long),
        labels=torch.tensor(labels, dtype=torch.long),
        keys=keys,
        problems=problems,
        visible=_visible(tokens.shape, placed),
        readings=tuple(readings) if ways > 1 else (),
    )


def _visible(shape: tuple[int, ...], placed: list[tuple[int, int, int, Example]]) -> Tensor | None:
    """bool [B, K, T, T]: which tokens each token sees; None where no text is read ahead of it."""
    if not any(example.sees_ahead for *_, example in placed):
        return None
    length = shape[-1]
    visible = np.tile(np.tri(length, dtype=np.bool_), (*shape[:2], 1, 1))
    for _, b, k, example in placed:
        if example.sees_ahead:
            # Padding is seen by none but itself, so that what a text is worth does not depend on the others' length.
            visible[b, k, :, : len(example.tokens)] = True
    return torch.from_numpy(visible)


def _has_image(samples: list[bool]) -> Tensor | None:
    return None if all(samples) else torch.tensor(samples)


def _stack(images: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images))
