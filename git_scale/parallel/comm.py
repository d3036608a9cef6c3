"""The process groups of a run and what their ranks exchange: the one place that knows them.

    WORLD   all ranks
    DP      the ranks that hold the same share of the model and see other samples
    TP      the ranks that share one model and see the same samples: neighbours, rank = dp_rank * tp + tp_rank

A process takes part in one run, so that there is one of each, as there is one default group in torch.distributed.
`form_groups` fills them; megatron-core's layers and DeepSpeed (mpu.py) are given the same.
"""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from git_scale.parallel.topology import Topology

T = TypeVar("T")


class Group:
    """Some ranks of a run. All of its methods are collective over them."""

    def __init__(self, is_alone: bool = False) -> None:
        """Until `process_group` is set: this rank alone, or all ranks."""
        self.process_group: dist.ProcessGroup | None = None
        self._is_alone = is_alone

    @property
    def is_alone(self) -> bool:
        """Whether this rank has nobody to exchange with."""
        return self._is_alone and self.process_group is None

    @property
    def size(self) -> int:
        return 1 if self.is_alone else dist.get_world_size(self.process_group)

    @property
    def rank(self) -> int:
        """The place of this process within the group."""
        return 0 if self.is_alone else dist.get_rank(self.process_group)

    def sum_(self, values: Tensor) -> Tensor:
        """The element-wise sum, in place."""
        return self._reduce_(values, dist.ReduceOp.SUM)

    def max_(self, values: Tensor) -> Tensor:
        """The element-wise maximum, in place."""
        return self._reduce_(values, dist.ReduceOp.MAX)

    def min_(self, values: Tensor) -> Tensor:
        """The element-wise minimum, in place."""
        return self._reduce_(values, dist.ReduceOp.MIN)

    def _reduce_(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if not self.is_alone:
            dist.all_reduce(values, operation, group=self.process_group)
        return values

    def gather(self, values: Tensor) -> list[Tensor]:
        """Every rank's tensor of this shape, in the order of the ranks."""
        if self.is_alone:
            return [values]
        everyones = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(everyones, values, group=self.process_group)
        return everyones

    def start_gathering(self, own: Tensor) -> tuple[Tensor, dist.Work]:
        """[B/size, ...] of each rank -> [B, ...] of all, once the work is done."""
        everyones = own.new_empty(len(own) * self.size, *own.shape[1:])
        return everyones, _started(
            dist.all_gather_into_tensor(everyones, own.contiguous(), group=self.process_group, async_op=True)
        )

    def start_summing(self, partial: Tensor) -> tuple[Tensor, dist.Work]:
        """[B, ...] of each rank -> this rank's [B/size, ...] of their sum, once the work is done."""
        own = torch.empty_like(self.own_part(partial), memory_format=torch.contiguous_format)
        return own, _started(
            dist.reduce_scatter_tensor(own, partial.contiguous(), group=self.process_group, async_op=True)
        )

    def own_part(self, everyones: Tensor) -> Tensor:
        """[B, ...] -> the [B/size, ...] that are this rank's, a view. Nothing is exchanged."""
        return everyones.chunk(self.size)[self.rank]

    def gather_objects(self, item: T) -> list[T]:
        """Every rank's item, in the order of the ranks."""
        if self.is_alone:
            return [item]
        items: list[T | None] = [None] * self.size
        dist.all_gather_object(items, item, group=self.process_group)
        return items  # type: ignore[return-value]

    def from_first(self, item: T) -> T:
        """The first rank's item, on every rank."""
        box = [item]
        if not self.is_alone:
            dist.broadcast_object_list(box, group=self.process_group, group_src=0)
        return box[0]


def _started(work: dist.Work | None) -> dist.Work:
    assert work is not None, "every rank that comes here is of the group"
    return work


WORLD, DP, TP = Group(), Group(), Group(is_alone=True)


def form_groups(topology: Topology) -> None:
    """Fills DP and TP once all processes have joined; a second call in a process changes nothing. Collective.

    megatron-core makes them, since its layers look for their group where it has put it; it is needed, and imported,
    for tensor parallelism alone.
    """
    if topology.tp == 1 or not TP.is_alone:
        return
    # It misses Transformer Engine for optimizers that are not used here, and a CUDA setting that slurm/env.sh weighs.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.core")
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(tensor_model_parallel_size=topology.tp)
    DP.process_group = parallel_state.get_data_parallel_group()
    TP.process_group = parallel_state.get_tensor_model_parallel_group()
    found = (DP.rank, DP.size, TP.rank, TP.size)
    if found != (topology.dp_rank, topology.dp, topology.tp_rank, topology.tp):
        raise RuntimeError(f"megatron-core's groups {found} are others than git_scale's {topology}")


class TensorParallelComm:
    """What objectives may ask of the ranks of `group`, with the gradients that follow (objectives/objective.py)."""

    def __init__(self, group: Group) -> None:
        """`group`: TP where the vocabulary is split over it."""
        self._group = group
        self.tp, self.tp_rank = group.size, group.rank

    def sum_over_tp(self, values: Tensor) -> Tensor:
        return values if self._group.is_alone else _Sum.apply(values, self._group)

    def max_over_tp(self, values: Tensor) -> Tensor:
        return self._group.max_(values.detach().clone())


class _Sum(torch.autograd.Function):
    """All ranks go on with the sum and do the same with it: the gradient is that of each rank's part."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Group) -> Tensor:
        return group.sum_(values.contiguous().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
