"""The held-out loss, and what the right image saves of it.

A captioner that has learned the language and ignores its images scores well enough on words to look healthy. Its
loss does not change when the image of a text is exchanged for another one: the image gain is then 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from git_scale.data.batch import Batch, EvalBatch
from git_scale.models.interface import Runner
from git_scale.objectives.objective import inputs_of


@dataclass(frozen=True)
class TextLoss:
    """Measures the right texts of a sample together: -log of their probability, in nats, without label smoothing."""

    index: int
    """Number of the sample in the shards."""
    tokens: int
    """That are predicted, end tokens included."""
    nats: float
    nats_with_other: float | None
    """With another sample's image in the place of their own; None where that was not looked at."""


def text_losses(runner: Runner, batch: EvalBatch, with_others: bool) -> list[TextLoss]:
    """Of each sample with texts. Collective where the model's forward pass is; `with_others` then as on all ranks."""
    own = _nats(runner, batch.texts)
    others = _nats(runner, replace(batch.texts, images=batch.others)) if with_others else own
    tokens = torch.bincount(_samples_of_rows(batch.texts), minlength=len(batch.keys)).tolist()
    return [
        TextLoss(index, count, nats, other if with_others and has_other else None)
        for index, count, nats, other, has_other in zip(
            batch.indices, tokens, own, others, batch.has_other, strict=True
        )
        if count
    ]


def perplexity(loss: float) -> float:
    """Of a loss in nats per token; infinite where a number cannot be as large."""
    return torch.tensor(loss, dtype=torch.float64).exp().item()


@torch.no_grad()
def predictions_right(runner: Runner, batch: EvalBatch) -> Counter[tuple[str, bool]]:
    """Of each objective that reads texts in a way of its own: how many of its predictions are right, and wrong.

    Collective where the model's forward pass is.
    """
    counts = Counter[tuple[str, bool]]()
    for name, examples in batch.examples.items():
        examples = examples.to(runner.device)
        right = runner.model(*inputs_of(examples, runner.dtype)).argmax(-1) == examples.labels
        counts[name, True] += int(right.sum())
        counts[name, False] += int((~right).sum())
    return counts


def accuracy_metrics(counts: Counter[tuple[str, bool]]) -> dict[str, float]:
    """`accuracy_NAME` of each objective that something was predicted for."""
    totals = Counter[str]()
    for (name, _), count in counts.items():
        totals[name] += count
    return {f"accuracy_{name}": counts[name, True] / total for name, total in totals.items() if total}


@torch.no_grad()
def _nats(runner: Runner, texts: Batch) -> list[float]:
    """[B]: the sum over each sample's target tokens."""
    texts = texts.to(runner.device)
    logits = runner.model(*inputs_of(texts, runner.dtype))
    found = F.cross_entropy(logits.float(), texts.labels, reduction="none").double().cpu()
    sums = torch.zeros(len(texts.keys), dtype=torch.float64)
    return sums.index_add_(0, _samples_of_rows(texts).cpu(), found).tolist()


def _samples_of_rows(texts: Batch) -> Tensor:
    """Number within the batch of the sample that each row belongs to."""
    return texts.rows // texts.tokens[0].numel()


def loss_metrics(losses: Iterable[TextLoss]) -> dict[str, float]:
    """`loss` in nats per token; `image_gain`: nats per token that a text's own image saves against another one.

    What nothing was measured of is left out.
    """
    losses = list(losses)
    compared = [item for item in losses if item.nats_with_other is not None]
    metrics = {}
    if losses:
        metrics["loss"] = math.fsum(item.nats for item in losses) / sum(item.tokens for item in losses)
    if compared:
        saved = math.fsum((item.nats_with_other or 0.0) - item.nats for item in compared)
        metrics["image_gain"] = saved / sum(item.tokens for item in compared)
    return metrics
