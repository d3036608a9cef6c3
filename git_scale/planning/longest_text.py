"""What a run's objectives make of the longest text that it may have: what a plan takes every text for."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from git_scale.config import RunConfig
from git_scale.data.batch import Batch
from git_scale.data.mixture import SourceSchedule, training_sources
from git_scale.data.texts import Example, Text
from git_scale.data.tokenizer import UncoveredText
from git_scale.objectives.examples import training_examples
from git_scale.tasks import TASKS

MOST_PARTS = 64  # a share within 1 / 4096 of its own


class _AnyTokenizer:
    """A plan is made where the run's tokenizer need not lie."""

    path, fingerprint = Path(), ""
    pad_id, bos_id, eos_id, mask_id = range(4)
    special_ids = frozenset(range(4))
    word = 4

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        return [self.word]

    def decode(self, ids: Iterable[int]) -> str:
        return ""

    def uncovered(self, text: str) -> UncoveredText:
        return UncoveredText([], [])


def longest_examples(run: RunConfig) -> list[Example]:
    """One for each way in which texts are read."""
    tokenizer = _AnyTokenizer(run.model.vocab_size)
    words = [tokenizer.word] * (run.data.max_text_tokens - 2)
    text = Text([tokenizer.bos_id, *words, tokenizer.eos_id], [False] + [True] * (len(words) + 1))
    return list(training_examples(run, tokenizer)(text, np.random.default_rng(0)))


def share_with_images(run: RunConfig) -> Fraction:
    """Of the run's samples, as parts of small numbers; the others are text alone."""
    sources = training_sources(run.data).values()
    shares = SourceSchedule([source.weight for source in sources]).shares
    with_images = [TASKS[str(source.task)].has_images for source in sources]
    share = sum((part for part, has in zip(shares, with_images, strict=True) if has), Fraction(0))
    return share.limit_denominator(MOST_PARTS)


def batch_on_meta(run: RunConfig, samples: int, images: int, height: int, width: int) -> Batch:
    """`samples` samples, of which the first `images` have an image, without values."""
    examples, texts = longest_examples(run), run.data.texts_per_image
    length = max(len(example.tokens) for example in examples)
    readings = [samples * texts * len(example.rows) for example in examples]
    shape = (samples, texts * len(examples), length)
    sees_ahead = any(example.sees_ahead for example in examples)
    rows = torch.empty(sum(readings), dtype=torch.long, device="meta")
    return Batch(
        torch.empty(images, run.model.frames, 3, height, width, dtype=torch.uint8, device="meta"),
        torch.empty(shape, dtype=torch.long, device="meta"),
        rows,
        torch.empty_like(rows),
        keys=[],
        problems=[],
        visible=torch.empty(*shape, length, dtype=torch.bool, device="meta") if sees_ahead else None,
        has_image=torch.empty(samples, dtype=torch.bool, device="meta") if images < samples else None,
        readings=tuple(readings) if len(readings) > 1 else (),
        draws=torch.empty(images, dtype=torch.long, device="meta"),
    )
