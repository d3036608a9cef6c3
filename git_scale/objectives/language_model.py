"""The paper's objective: each word of a text from the image and the words before it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from git_scale.data.batch import Batch
from git_scale.objectives.objective import Objective, VocabularyComm, own_columns, without_padding


class LanguageModelObjective(Objective):
    """A mean over the target tokens of the global batch (paper section 3.2, with label smoothing)."""

    def count(self, batch: Batch) -> int:
        return batch.num_targets

    def sum(self, logits: Tensor, batch: Batch, comm: VocabularyComm) -> Tensor:
        vocab_size, smoothing = self.run.model.vocab_size, self.run.train.label_smoothing
        if comm.tp > 1:
            return vocabulary_parallel_loss(logits, batch.labels, smoothing, vocab_size, comm)
        return language_model_loss(logits, batch.labels, smoothing)


def language_model_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """GIT's loss, summed over the rows of logits [n, V] with labels [n]; fp32 scalar.

    KL(q || p) with q = 1 - e on the label and e / (V - 1) on every other word (e = smoothing), so a perfect
    model reaches 0. torch's own smoothing spreads e over all V words, hence the factor V / (V - 1), and leaves
    the entropy of q in (1.3577 nats for e = 0.1, V = 30522), hence the subtraction. e = 0 is cross entropy.
    """
    vocab = logits.shape[-1]
    total = F.cross_entropy(
        logits.float(), labels, label_smoothing=smoothing * vocab / (vocab - 1), reduction="sum"
    )
    return total - labels.numel() * smoothing_entropy(smoothing, vocab)


def smoothing_entropy(smoothing: float, vocab: int) -> float:
    """Entropy in nats of the smoothed target distribution."""
    if smoothing == 0:
        return 0.0
    return -(1 - smoothing) * math.log(1 - smoothing) - smoothing * math.log(smoothing / (vocab - 1))


def vocabulary_parallel_loss(
    logits: Tensor, labels: Tensor, smoothing: float, vocab_size: int, comm: VocabularyComm
) -> Tensor:
    """language_model_loss of logits [n, ceil(V / tp)] that hold this rank's words; the same on all ranks.

    megatron-core's own vocabulary-parallel cross entropy will not do: it smooths over all rows, the padding among
    them, and spreads e over V words where GIT has e / (V - 1) on the other ones.
    """
    first, own = comm.tp_rank * logits.shape[-1], own_columns(logits, vocab_size, comm)
    logits = without_padding(logits, vocab_size, comm)
    peak = comm.max_over_tp(logits.detach().amax(-1))
    index = labels - first
    is_own = (index >= 0) & (index < own)
    of_label = logits.gather(-1, index.clamp(0, logits.shape[-1] - 1)[:, None])[:, 0].where(is_own, 0.0)
    sums = torch.stack([(logits - peak[:, None]).exp().sum(-1), of_label, logits[:, :own].sum(-1)])
    exponentials, label_logits, all_logits = comm.sum_over_tp(sums)
    log_normaliser = exponentials.log() + peak
    cross_entropy = log_normaliser - label_logits
    of_others = vocab_size * log_normaliser - all_logits - cross_entropy
    total = ((1 - smoothing) * cross_entropy + smoothing / (vocab_size - 1) * of_others).sum()
    return total - labels.numel() * smoothing_entropy(smoothing, vocab_size)
