"""The contract between the data and the model: what one micro-batch is made of.

B images per micro-batch, F frames per image, K texts per image, T text positions.
"""

from __future__ import annotations

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
    targets: Tensor
    """bool [B, K, T]: True where tokens[b, k, t] is predicted from the position before it; never at t = 0."""
    keys: list[str]
    """SHARD.tar:KEY of each sample."""
    problems: list[str]
    """One message per sample that could not be used."""

    @property
    def num_targets(self) -> int:
        return int(self.targets.sum())

    def target_rows(self) -> tuple[Tensor, Tensor]:
        """int64 [n] positions in flat [B*K*T] whose next token is a target, and those tokens.

        Asked before the batch goes to a GPU, where finding them would make the host wait.
        """
        at = self.targets.flatten().nonzero().squeeze(1)
        return at - 1, self.tokens.flatten()[at]

    def to(self, device: torch.device | str) -> Batch:
        images, tokens, targets = (
            tensor.to(device, non_blocking=True) for tensor in (self.images, self.tokens, self.targets)
        )
        return replace(self, images=images, tokens=tokens, targets=targets)

    def pin_memory(self) -> Batch:
        """The DataLoader's hook: copies from pinned memory run beside the computation."""
        return replace(
            self,
            images=self.images.pin_memory(),
            tokens=self.tokens.pin_memory(),
            targets=self.targets.pin_memory(),
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
    """The picture of another sample, of which other texts are right; None where none was looked for or found."""


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
    """The same pictures with their right texts as training has them; none for a slot without queries."""
    others: Tensor
    """uint8 [B, F, 3, H, W]: of each sample another one's picture, its own where `has_other` is False."""
    has_other: list[bool]


def black(frames: int, size: int) -> np.ndarray:
    """The picture of a slot that is not used: uint8 [F, 3, H, W]."""
    return np.zeros((frames, 3, size, size), np.uint8)


def collate(samples: list[Sample], pad_id: int = 0) -> Batch:
    """Stacks samples of equal F, H, W and K; T is the longest text's length."""
    tokens, targets = _stack_texts([sample.texts for sample in samples], pad_id)
    return Batch(
        images=_stack([sample.images for sample in samples]),
        tokens=tokens,
        targets=targets,
        keys=[sample.key for sample in samples],
        problems=[sample.problem for sample in samples if sample.problem],
    )


def collate_eval(samples: list[EvalSample], pad_id: int = 0) -> EvalBatch:
    """Stacks samples of equal F, H and W; the numbers of their queries and texts may differ."""
    images = _stack([sample.images for sample in samples])
    keys = [sample.key for sample in samples]
    problems = [sample.problem for sample in samples if sample.problem]
    tokens, targets = _stack_texts([sample.texts for sample in samples], pad_id)
    others = [sample.images if sample.other is None else sample.other for sample in samples]
    has_other = [sample.other is not None for sample in samples]
    return EvalBatch(
        images=images,
        queries=[sample.queries for sample in samples],
        keys=keys,
        indices=[sample.index for sample in samples],
        problems=problems,
        texts=Batch(images, tokens, targets, keys, problems),
        others=_stack(others) if any(has_other) else images,
        has_other=has_other,
    )


def _stack_texts(rows: list[list[Text]], pad_id: int) -> tuple[Tensor, Tensor]:
    """int64 tokens and bool targets [B, K, T]; a sample with fewer texts than others has padding alone for them."""
    texts = max(1, *map(len, rows))
    length = max((len(text.tokens) for row in rows for text in row), default=1)
    shape = len(rows), texts, length
    tokens, targets = np.full(shape, pad_id, np.int64), np.zeros(shape, np.bool_)
    for b, row in enumerate(rows):
        for k, text in enumerate(row):
            tokens[b, k, : len(text.tokens)] = text.tokens
            targets[b, k, : len(text.targets)] = text.targets
    return torch.from_numpy(tokens), torch.from_numpy(targets)


def _stack(images: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images))
