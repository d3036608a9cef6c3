"""The contract between the data and the model: what one micro-batch is made of.

B images per micro-batch, F frames per image, K texts per image, T text positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from git_scale.data.texts import Query, Text


@dataclass(frozen=True)
class Sample:
    """One sample, ready to be stacked: `images` uint8 [F, 3, H, W], K texts."""

    key: str
    images: np.ndarray
    texts: list[Text]
    problem: str | None = None


@dataclass(frozen=True)
class Batch:
    """One micro-batch of training.

    A sample that cannot be used never leaves its place, so that shapes, order and the lockstep of the ranks
    stay: it is a black image whose texts have no targets, and weighs nothing in a loss over target tokens.
    """

    images: Tensor
    """uint8 [B, F, 3, H, W]."""
    tokens: Tensor
    """int64 [B, K, T]: begin, prefix, target, end, padding. Every row begins with the begin token."""
    rows: Tensor
    """int64 [n]: the positions in flat [B*K*T] at which something is predicted."""
    labels: Tensor
    """int64 [n]: the token that is right at each of them."""
    keys: list[str]
    """SHARD.tar:KEY of each sample."""
    problems: list[str]
    """One message per sample that could not be used."""

    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """What an objective's `prepare` has added."""

    @property
    def num_targets(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Batch:
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Copies from pinned memory run beside the computation."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            images=change(self.images),
            tokens=change(self.tokens),
            rows=change(self.rows),
            labels=change(self.labels),
            extras={name: change(tensor) for name, tensor in self.extras.items()},
        )


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
    other: np.ndarray | None = None
    """The image of another sample, of which other texts are right; None where none was looked for or found."""


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
    """The same images with their right texts as training has them; none for a slot without queries."""
    others: Tensor
    """uint8 [B, F, 3, H, W]: of each sample another one's image, its own where `has_other` is False."""
    has_other: list[bool]


def black(frames: int, size: int) -> np.ndarray:
    """The image of a slot that is not used: uint8 [F, 3, H, W]."""
    return np.zeros((frames, 3, size, size), np.uint8)


def collate(samples: list[Sample], pad_id: int = 0) -> Batch:
    """Stacks samples of equal F, H, W and K; T is the longest text's length."""
    tokens, rows, labels = _stack_texts([sample.texts for sample in samples], pad_id)
    return Batch(
        images=_stack([sample.images for sample in samples]),
        tokens=tokens,
        rows=rows,
        labels=labels,
        keys=[sample.key for sample in samples],
        problems=[sample.problem for sample in samples if sample.problem],
    )


def collate_eval(samples: list[EvalSample], pad_id: int = 0) -> EvalBatch:
    """Stacks samples of equal F, H and W; the numbers of their queries and texts may differ."""
    images = _stack([sample.images for sample in samples])
    keys = [sample.key for sample in samples]
    problems = [sample.problem for sample in samples if sample.problem]
    tokens, rows, labels = _stack_texts([sample.texts for sample in samples], pad_id)
    others = [sample.images if sample.other is None else sample.other for sample in samples]
    has_other = [sample.other is not None for sample in samples]
    return EvalBatch(
        images=images,
        queries=[sample.queries for sample in samples],
        keys=keys,
        indices=[sample.index for sample in samples],
        problems=problems,
        texts=Batch(images, tokens, rows, labels, keys, problems),
        others=_stack(others) if any(has_other) else images,
        has_other=has_other,
    )


def _stack_texts(samples: list[list[Text]], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [B, K, T] with the rows and labels of Batch; a sample with fewer texts than others has padding alone."""
    texts = max(1, *map(len, samples))
    length = max((len(text.tokens) for sample in samples for text in sample), default=1)
    tokens = np.full((len(samples), texts, length), pad_id, np.int64)
    is_target = np.zeros(tokens.shape, np.bool_)
    for b, sample in enumerate(samples):
        for k, text in enumerate(sample):
            tokens[b, k, : len(text.tokens)] = text.tokens
            is_target[b, k, : len(text.targets)] = text.targets
    targets = torch.from_numpy(is_target.ravel().nonzero()[0])
    flat = torch.from_numpy(tokens)
    return flat, targets - 1, flat.flatten()[targets]  # each is predicted from the position before it


def _stack(images: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images))
