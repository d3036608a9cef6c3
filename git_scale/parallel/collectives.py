"""The few questions that ranks ask each other. Every function is collective: all ranks must call it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from git_scale.errors import UserError
from git_scale.parallel.groups import GROUPS
from git_scale.parallel.topology import Topology

T = TypeVar("T")


def sum_over_dp(values: Tensor) -> Tensor:
    """The element-wise sum over the data-parallel ranks, in place, the same to the bit on all ranks.

    Goes over all ranks, those of a tensor-parallel group together counting as one: a flag that a single rank
    raises is above 0 on every one.
    """
    dist.all_reduce(values)
    values /= dist.get_world_size() // dist.get_world_size(GROUPS.dp)
    return values


def sum_over_tp(values: Tensor) -> Tensor:
    """The element-wise sum over the ranks of the tensor-parallel group, in place."""
    if GROUPS.tp is not None:
        dist.all_reduce(values, group=GROUPS.tp)
    return values


def same_over_tp(values: Tensor) -> Tensor:
    """bool, element-wise: whether all ranks of the tensor-parallel group have this value."""
    least, most = values.clone(), values.clone()
    dist.all_reduce(least, op=dist.ReduceOp.MIN, group=GROUPS.tp)
    dist.all_reduce(most, op=dist.ReduceOp.MAX, group=GROUPS.tp)
    return least == most


def any_rank(flag: bool, device: torch.device) -> bool:
    """True on every rank when true on one."""
    votes = torch.tensor([int(flag)], device=device)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return bool(votes.item())


def gather_objects(item: T) -> list[T]:
    """Every rank's item, in rank order."""
    items: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(items, item)
    return items  # type: ignore[return-value]


def gather_over_dp(item: T) -> list[T]:
    """Each data-parallel rank's item, in their order."""
    items: list[T | None] = [None] * dist.get_world_size(GROUPS.dp)
    dist.all_gather_object(items, item, group=GROUPS.dp)
    return items  # type: ignore[return-value]


def shared_over_tp(items: Iterable[T]) -> Iterator[T]:
    """The items of the first rank of the tensor-parallel group, one by one, on all of the group.

    Only the first rank's `items` are asked: one reader per group instead of tp, and no two ranks of a group can see
    different batches.
    """
    if GROUPS.tp is None:
        yield from items
        return
    source = iter(items) if dist.get_rank(GROUPS.tp) == 0 else None
    while True:
        box = [next(source) if source is not None else None]
        dist.broadcast_object_list(box, group=GROUPS.tp, group_src=0)
        yield box[0]  # type: ignore[misc]


def from_first_rank(item: T) -> T:
    """The first rank's item, on every rank."""
    box = [item]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def first_rank_first(topology: Topology, action: Callable[[], T]) -> T:
    """Runs `action` on the first rank, then on the others: what it writes (an index) is written once.

    A UserError on the first rank is raised on all of them.
    """
    result, error = None, None
    if topology.is_writer:
        try:
            result = action()
        except UserError as failure:
            error = failure
    if error := from_first_rank(error):
        raise error
    return result if topology.is_writer else action()  # type: ignore[return-value]
