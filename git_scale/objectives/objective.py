"""What a training objective is: a sum over a micro-batch, and the number that it is divided by.

A step's loss is, for each objective, the sum over all micro-batches and data-parallel ranks divided by the count over
all of them, times its weight. So it is the same for any number of ranks and micro-batches.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from git_scale.config import RunConfig
from git_scale.data.batch import Batch
from git_scale.data.images import normalise
from git_scale.data.texts import Example, Text, next_words
from git_scale.data.tokenizer import Tokenizer
from git_scale.models.decoder import TextPlacement
from git_scale.models.interface import Runner
from git_scale.registry import lacks


class ModelInputs(NamedTuple):
    """Arguments of the model's forward pass."""

    images: Tensor
    """[B, F, 3, H, W] in the run's precision, normalised."""
    tokens: Tensor
    """int64 [B, K, T]."""
    rows: Tensor
    """int64 [n]: positions in flat [B*K*T] that logits are wanted of."""
    placement: TextPlacement | None
    """Of texts that see more than what is before."""
    draws: Tensor | None
    """int64 [B]: by which patches are left out (models/patch_drop.py); None: none is."""


class VocabularyComm(Protocol):
    """The ranks over which the vocabulary is split: each has the logits of its words. Methods are collective."""

    @property
    def tp(self) -> int:
        """Their number; 1 where every rank has all logits, so that nothing is to be summed."""

    @property
    def tp_rank(self) -> int: ...

    def sum_over_tp(self, values: Tensor) -> Tensor:
        """The element-wise sum, the same on all; a gradient goes back to each rank's values as it is."""

    def max_over_tp(self, values: Tensor) -> Tensor:
        """The element-wise maximum, without a gradient."""


class SingleRankComm:
    """The VocabularyComm of logits that are whole."""

    tp, tp_rank = 1, 0

    def sum_over_tp(self, values: Tensor) -> Tensor:
        return values

    def max_over_tp(self, values: Tensor) -> Tensor:
        return values.detach()


class Objective(ABC):
    """One term of the loss. `train.objectives` names it and gives its weight."""

    accumulates: ClassVar[bool] = True
    """Whether micro-batches add up. Not so where the samples of one are compared with each other, as in a contrastive
    loss: then accumulation is refused."""

    needs_images: ClassVar[bool] = False
    """Whether each sample must have an image, as for a contrastive loss: then sources of text alone are refused."""

    def __init__(self, run: RunConfig) -> None:
        self.run = run

    def example(self, text: Text, tokenizer: Tokenizer, rng: np.random.Generator) -> Example:
        """What it learns of a text; all that is random comes from `rng`, which is the sample's in its epoch.

        Objectives that leave this as it is share one reading of the texts, the language model's: the next words, or,
        of the share train.parallel_share of captions, all words from the image alone.
        """
        share = self.run.train.parallel_share
        if share > 0 and text.is_caption and rng.random() < share:
            return all_masked(text, tokenizer, self.run.data.max_text_tokens)
        return next_words(text)

    @abstractmethod
    def count(self, batch: Batch) -> int:
        """What the sum over a micro-batch is of: target tokens, samples, ... 0 where it has nothing to learn."""

    @abstractmethod
    def sum(self, logits: Tensor, batch: Batch, comm: VocabularyComm) -> Tensor:
        """Over a micro-batch, fp32 scalar, the same on the ranks of a tensor-parallel group.

        batch: with the rows of this objective's examples alone. logits: [n, V] of `batch.rows`; where comm.tp > 1
        those of this rank's words, [n, ceil(V / tp)].
        """

    def prepare(self, runner: Runner, batches: list[Batch]) -> list[Batch]:
        """The micro-batches of a step, after what needs the model before it. Collective.

        A reward of generated texts generates them here and puts them in the place of the batch's; cached
        representations come into `batch.extras`. What is counted is counted afterwards. Most objectives leave the
        batches as they are.
        """
        return batches

    def stand_in(self, batch: Batch) -> Batch:
        """A batch of the shapes that `prepare` gives, of any values, for a plan, which has no model to ask.

        return replace(batch, extras={"reward": torch.empty(len(batch.images), device=batch.images.device)})
        """
        return batch


def flaw_of(entry: object) -> str:
    """Why an entry of OBJECTIVES cannot be used; empty for one that can."""
    return lacks(entry, Objective)


def own_columns(logits: Tensor, vocab_size: int, comm: VocabularyComm) -> int:
    """How many columns of this rank's logits stand for words; the others pad the vocabulary of `vocab_size`."""
    columns = logits.shape[-1]
    return min(max(vocab_size - comm.tp_rank * columns, 0), columns)  # the last ranks may have none


def without_padding(logits: Tensor, vocab_size: int, comm: VocabularyComm) -> Tensor:
    """fp32 logits, -inf where there is no word."""
    padding = torch.arange(logits.shape[-1], device=logits.device) >= own_columns(logits, vocab_size, comm)
    return logits.float().masked_fill(padding, -math.inf)


def all_masked(text: Text, tokenizer: Tokenizer, length: int) -> Example:
    """Every word from the image alone: parallel prediction (CapPa, arXiv 2306.07915, section 3.2).

    As there, what is read has the same length for every text, so that it does not tell how many words are to come;
    what is predicted ends with the end token.
    """
    labels = text.tokens[1:]
    return Example([tokenizer.mask_id] * (length - 1), list(range(len(labels))), labels, sees_ahead=True)


def inputs_of(batch: Batch, dtype: torch.dtype) -> ModelInputs:
    """The one forward pass that all objectives of a run share."""
    return ModelInputs(
        normalise(batch.images, dtype), batch.tokens, batch.rows, placement_of(batch), batch.draws
    )


def placement_of(batch: Batch) -> TextPlacement | None:
    """None where each text sees its image and what is before."""
    if batch.visible is None and batch.has_image is None:
        return None
    tokens, visible = batch.tokens, batch.visible
    length = tokens.shape[-1]
    if visible is None:
        causal = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        visible = causal.expand(*tokens.shape, length)
    return TextPlacement(torch.arange(length, device=tokens.device), visible, batch.has_image)
