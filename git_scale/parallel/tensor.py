"""A model's modules exchanged for tensor-parallel ones, by the table in rules.py.

The model is built plain, on meta, and does not know. Split linear layers become megatron-core's; heads become
this rank's. Everything between them is computed by every rank of a group, from the same numbers; with
parallel.sequence by each for its own pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import ModelParallelConfig, parallel_state
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from torch import Tensor, nn

from git_scale.checkpoint.split import padded_rows
from git_scale.config import ParallelConfig
from git_scale.models.git import smoothing_entropy
from git_scale.parallel.rules import Column, Row, Rule, Slice, Vocabulary, Way, make_local
from git_scale.parallel.sequence import column_forward, divide_stream, row_forward
from git_scale.parallel.splits import ruled_modules


def split_modules(model: Any, parallel: ParallelConfig) -> None:
    """Exchanges, in place, what the rules name. The model is on meta, and so are the new layers' parameters.

    Call splits_of first: it refuses what cannot be split, and knows the whole shapes.
    """
    config = ModelParallelConfig(
        tensor_model_parallel_size=parallel.tp,
        use_cpu_initialization=True,  # "where the default device says", which is meta here
        perform_initialization=False,
        gradient_accumulation_fusion=False,  # adds to weight.main_grad, which ZeRO does not have
    )
    tied = model.decoder.head.weight is model.decoder.embedding.words.weight
    for _, module, rule in list(ruled_modules(model, parallel)):
        with torch.device("meta"):
            for child, way in rule.children.items():
                _exchange(module, child, way, parallel, config)
        make_local(module, rule, parallel.tp)
        if not parallel.sequence:
            _separate_dropouts(module, rule)
    if tied and parallel.decoder:
        model.decoder.head.weight = model.decoder.embedding.words.weight
    if parallel.sequence:
        divide_stream(model, parallel)
        for tower in (model.encoder, *([model.decoder] if parallel.decoder else [])):
            tower.forward = _with_own_random_state(tower, tower.forward)


def _exchange(
    module: nn.Module, child: str, way: Way, parallel: ParallelConfig, config: ModelParallelConfig
) -> None:
    old: Any = getattr(module, child)
    tp, sequence = parallel.tp, parallel.sequence
    options: dict[str, Any] = {"config": config, "init_method": nn.init.zeros_}
    match way:
        case Slice(dim):
            shape = list(old.shape)
            shape[dim] //= tp
            setattr(module, child, nn.Parameter(old.new_empty(shape), old.requires_grad))
            return
        case Column():
            new: nn.Module = (_SequenceColumn if sequence else _Column)(
                old.in_features, old.out_features, bias=old.bias is not None, gather_output=False, **options
            )
        case Row():
            new = (_SequenceRow if sequence else _Row)(
                old.in_features,
                old.out_features,
                bias=old.bias is not None,
                input_is_parallel=True,
                skip_bias_add=False,
                **options,
            )
        case Vocabulary() if isinstance(old, nn.Embedding):
            new = VocabParallelEmbedding(padded_rows(old.num_embeddings, tp), old.embedding_dim, **options)
        case Vocabulary():
            new = VocabularyHead(old.bias.shape[0], old.weight.shape[1], tp)
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(old.get_parameter(name).requires_grad)
    setattr(module, child, new)


def _separate_dropouts(module: Any, rule: Rule) -> None:
    for name in rule.own_dropout:
        part = getattr(module, name)
        if part.p > 0:
            part.forward = _with_own_random_state(part, part.forward)


# megatron-core's layers return a pair and take three dimensions at most: Swin and the text stream have four.


class _Column(ColumnParallelLinear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2))[0].unflatten(0, x.shape[:-1])


class _Row(RowParallelLinear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2))[0].unflatten(0, x.shape[:-1])


# In evaluation, of any number of pictures, the stream is not divided.


class _SequenceColumn(_Column):
    def forward(self, x: Tensor) -> Tensor:
        return column_forward(self, x) if self.training else super().forward(x)


class _SequenceRow(_Row):
    def forward(self, x: Tensor) -> Tensor:
        return row_forward(self, x) if self.training else super().forward(x)


class VocabularyHead(nn.Module):
    """Logits of this rank's words in training, for vocabulary_loss; in evaluation of all words, without padding."""

    def __init__(self, words: int, width: int, tp: int) -> None:
        super().__init__()
        self.words = words
        rows = padded_rows(words, tp) // tp
        self.weight = nn.Parameter(torch.empty(rows, width))
        self.bias = nn.Parameter(torch.empty(rows))

    def forward(self, hidden: Tensor) -> Tensor:
        logits = F.linear(copy_to_tensor_model_parallel_region(hidden), self.weight, self.bias)
        if self.training:
            return logits
        # megatron-core's own gathering wants a GPU
        shares = [
            torch.empty_like(logits) for _ in range(parallel_state.get_tensor_model_parallel_world_size())
        ]
        dist.all_gather(shares, logits, group=parallel_state.get_tensor_model_parallel_group())
        return torch.cat(shares, dim=-1)[..., : self.words]


def vocabulary_loss(logits: Tensor, labels: Tensor, smoothing: float, words: int) -> Tensor:
    """models.git.language_model_loss of logits [n, V/tp] that each hold one rank's words; the same on all ranks.

    megatron-core's own vocabulary-parallel cross entropy will not do: it smooths over all rows, the padding among
    them, and spreads e over V words where GIT has e / (V - 1) on the other ones.
    """
    rank = parallel_state.get_tensor_model_parallel_rank()
    first = rank * logits.shape[-1]
    own = min(max(words - first, 0), logits.shape[-1])  # the last ranks may hold nothing but padding
    padding = torch.arange(logits.shape[-1], device=logits.device) >= own
    logits = logits.float().masked_fill(padding, -math.inf)
    peak = logits.detach().amax(-1)
    dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=parallel_state.get_tensor_model_parallel_group())
    index = labels - first
    is_own = (index >= 0) & (index < own)
    of_label = logits.gather(-1, index.clamp(0, logits.shape[-1] - 1)[:, None])[:, 0].where(is_own, 0.0)
    sums = torch.stack([(logits - peak[:, None]).exp().sum(-1), of_label, logits[:, :own].sum(-1)])
    exponentials, label_logits, all_logits = reduce_from_tensor_model_parallel_region(sums)
    log_normaliser = exponentials.log() + peak
    cross_entropy = log_normaliser - label_logits
    of_others = words * log_normaliser - all_logits - cross_entropy
    total = ((1 - smoothing) * cross_entropy + smoothing / (words - 1) * of_others).sum()
    return total - labels.numel() * smoothing_entropy(smoothing, words)


def _with_own_random_state(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def with_own_random_state(*args: Any, **kwargs: Any) -> Any:
        if not module.training:
            return forward(*args, **kwargs)
        with own_random_state():
            return forward(*args, **kwargs)

    return with_own_random_state


@contextmanager
def own_random_state() -> Iterator[None]:
    """Random numbers that differ over the ranks of a group, where all others are the same on them.

    The seed is drawn from the common state: it moves alike on all ranks, needs no place in a checkpoint, and the
    recomputation of activation checkpointing, which restores the common state, draws the same masks again.
    """
    seed = int(torch.randint(2**62, ()))
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed + parallel_state.get_tensor_model_parallel_rank())
        yield
