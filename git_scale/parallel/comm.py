"""What objectives may ask of other ranks, with the gradients that follow from it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from git_scale.parallel.collectives import sum_over_tp
from git_scale.parallel.groups import GROUPS
from git_scale.parallel.topology import Topology


class Comm:
    """The Comm of git_scale/objectives/objective.py among the ranks of a run."""

    def __init__(self, topology: Topology, splits_vocabulary: bool) -> None:
        self.tp, self.tp_rank = (topology.tp, topology.tp_rank) if splits_vocabulary else (1, 0)

    def sum_over_tp(self, values: Tensor) -> Tensor:
        return _SumOverTp.apply(values) if self.tp > 1 else values

    def max_over_tp(self, values: Tensor) -> Tensor:
        largest = values.detach().clone()
        if self.tp > 1:
            dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=GROUPS.tp)
        return largest


class _SumOverTp(torch.autograd.Function):
    """All ranks go on with the sum and do the same with it: the gradient is that of each rank's part."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return sum_over_tp(values.contiguous().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient
