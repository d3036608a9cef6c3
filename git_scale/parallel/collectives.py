"""The few questions that ranks ask each other. Every function is collective: all ranks must call it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from git_scale.errors import UserError
from git_scale.parallel.topology import Topology

T = TypeVar("T")


def sum_over_ranks(values: Tensor) -> Tensor:
    """The element-wise sum, in place."""
    dist.all_reduce(values)
    return values


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
