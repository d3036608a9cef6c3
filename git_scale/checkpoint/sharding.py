"""Cuts a parameter into the shards of a tensor-parallel group, and joins them: arithmetic on shapes and tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Rows of a vocabulary per rank are a multiple of this: tensor cores want 16 bytes of bf16.
VOCABULARY_MULTIPLE = 8


@dataclass(frozen=True)
class Split:
    """Says which dimension is cut: it holds `parts` equal groups, of each of which every rank has its 1/tp."""

    dim: int
    parts: int = 1
    padded: bool = False
    """Zeros are added at the end until every rank has the same multiple of VOCABULARY_MULTIPLE."""


def local_shape(shape: torch.Size, split: Split | None, tp: int) -> torch.Size:
    """The shape of one rank's shard of a parameter of this shape."""
    if split is None or tp == 1:
        return shape
    rows = list(shape)
    rows[split.dim] = (padded_rows(rows[split.dim], tp) if split.padded else rows[split.dim]) // tp
    return torch.Size(rows)


def padded_rows(rows: int, tp: int) -> int:
    """The rows of a vocabulary's table over all ranks, padding included."""
    multiple = VOCABULARY_MULTIPLE * tp
    return -(-rows // multiple) * multiple


def shard_of(whole: Tensor, split: Split | None, tp: int, tp_rank: int) -> Tensor:
    """A rank's shard; a view where that is possible."""
    if split is None or tp == 1:
        return whole
    if split.padded:
        missing = padded_rows(whole.shape[split.dim], tp) - whole.shape[split.dim]
        whole = torch.cat([whole, whole.new_zeros(missing, *whole.shape[1:])])
    groups = whole.unflatten(split.dim, (split.parts, tp, -1)).select(split.dim + 1, tp_rank)
    return groups.flatten(split.dim, split.dim + 1)


def join_shards(shard: Callable[[int], Tensor], split: Split | None, tp: int, shape: torch.Size) -> Tensor:
    """The whole parameter from `shard(tp_rank)`, asked in their order; the inverse of `shard_of`."""
    if split is None or tp == 1:
        return shard(0)
    groups = [shard(tp_rank).unflatten(split.dim, (split.parts, -1)) for tp_rank in range(tp)]
    whole = torch.stack(groups, dim=split.dim + 1).flatten(split.dim, split.dim + 2)
    return whole.narrow(split.dim, 0, shape[split.dim])
