"""A model's modules exchanged for tensor-parallel ones, by the table in rules.py.

The model is built plain, on meta, and does not know. Split linear layers become megatron-core's; heads become
this rank's. Everything between them is computed by every rank of a group, from the same numbers; with
parallel.sequence by each for its own images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import ModelParallelConfig
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    copy_to_tensor_model_parallel_region,
)
from torch import Tensor, nn

from git_scale.checkpoint.sharding import padded_rows
from git_scale.config import ParallelConfig
from git_scale.parallel.comm import TP
from git_scale.parallel.rules import (
    ColumnParallel,
    Cut,
    RowParallel,
    Rule,
    SliceParallel,
    VocabularyParallel,
    make_local,
)
from git_scale.parallel.sequence import column_forward, divide_stream, row_forward
from git_scale.parallel.splits import split_modules, tie_parameters, tied_parameters


def make_tensor_parallel(model: Any, parallel: ParallelConfig) -> None:
    """Exchanges, in place, what the rules name. The model is on meta, and so are the new layers' parameters.

    Call splits_of first: it refuses what cannot be split, and knows the whole shapes.
    """
    config = ModelParallelConfig(
        tensor_model_parallel_size=parallel.tp,
        use_cpu_initialization=True,  # "where the default device says", which is meta here
        perform_initialization=False,
        gradient_accumulation_fusion=False,  # adds to weight.main_grad, which ZeRO does not have
    )
    tied = tied_parameters(model)
    for _, module, rule in split_modules(model, parallel):
        with torch.device("meta"):
            for child, cut in rule.children.items():
                _replace_with_split_layer(module, child, cut, parallel, config)
        make_local(module, rule, parallel.tp)
        if not parallel.sequence:
            _separate_dropouts(module, rule)
    tie_parameters(model, tied)
    if parallel.sequence:
        for tower in divide_stream(model, parallel, TP):
            tower.forward = _with_own_random_state(tower, tower.forward)


def _replace_with_split_layer(
    module: nn.Module, child: str, cut: Cut, parallel: ParallelConfig, config: ModelParallelConfig
) -> None:
    old: Any = getattr(module, child)
    tp, sequence = parallel.tp, parallel.sequence
    options: dict[str, Any] = {"config": config, "init_method": nn.init.zeros_}
    match cut:
        case SliceParallel(dim):
            shape = list(old.shape)
            shape[dim] //= tp
            setattr(module, child, nn.Parameter(old.new_empty(shape), old.requires_grad))
            return
        case ColumnParallel():
            new: nn.Module = (_SequenceColumn if sequence else _Column)(
                old.in_features, old.out_features, bias=old.bias is not None, gather_output=False, **options
            )
        case RowParallel():
            new = (_SequenceRow if sequence else _Row)(
                old.in_features,
                old.out_features,
                bias=old.bias is not None,
                input_is_parallel=True,
                skip_bias_add=False,
                **options,
            )
        case VocabularyParallel() if isinstance(old, nn.Embedding):
            new = VocabParallelEmbedding(padded_rows(old.num_embeddings, tp), old.embedding_dim, **options)
        case VocabularyParallel():
            new = VocabularyParallelHead(old.bias.shape[0], old.weight.shape[1], tp)
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


# In evaluation, of any number of images, the stream is not divided.


class _SequenceColumn(_Column):
    def forward(self, x: Tensor) -> Tensor:
        return column_forward(self, x, TP) if self.training else super().forward(x)


class _SequenceRow(_Row):
    def forward(self, x: Tensor) -> Tensor:
        return row_forward(self, x, TP) if self.training else super().forward(x)


class VocabularyParallelHead(nn.Module):
    """Logits of this rank's words in training, which an objective reads; in evaluation of all, without padding."""

    def __init__(self, vocab_size: int, width: int, tp: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        rows = padded_rows(vocab_size, tp) // tp
        self.weight = nn.Parameter(torch.empty(rows, width))
        self.bias = nn.Parameter(torch.empty(rows))

    def forward(self, hidden: Tensor) -> Tensor:
        logits = F.linear(copy_to_tensor_model_parallel_region(hidden), self.weight, self.bias)
        if self.training:
            return logits
        # megatron-core's own gathering wants a GPU
        return torch.cat(TP.gather(logits), dim=-1)[..., : self.vocab_size]


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
        torch.manual_seed(seed + TP.rank)
        yield
