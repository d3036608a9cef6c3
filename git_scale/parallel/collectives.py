"""What ranks agree on: a stop, a failure, whose work comes first. Every function is collective: all ranks call it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NoReturn, TypeVar

import torch
from torch import Tensor

from git_scale.errors import PeerFailedError, UserError
from git_scale.parallel.comm import TP, WORLD
from git_scale.parallel.topology import Topology
from git_scale.stop import BackgroundWork, Stopped, check_stop, request_stop, stop_requested

T = TypeVar("T")

ROUND_S = 1.0  # between two rounds of `together`: the longest that a rank waits in one collective for another's work
STOP_GRACE_S = 5.0  # for work that looks at the stop request to end by itself


def sum_over_dp(values: Tensor) -> Tensor:
    """The element-wise sum over the data-parallel ranks, in place, the same to the bit on all ranks.

    Goes over all ranks, those of a tensor-parallel group together counting as one: a flag that a single rank
    raises is above 0 on every one.
    """
    WORLD.sum_(values)
    values /= TP.size
    return values


def any_rank(flag: bool, device: torch.device) -> bool:
    """True on every rank when true on one."""
    return bool(WORLD.max_(torch.tensor([int(flag)], device=device)).item())


def shared_over_tp(items: Iterable[T]) -> Iterator[T]:
    """The items of the first rank of the tensor-parallel group, one by one, on all of the group.

    Only the first rank's `items` are asked: one reader per group instead of tp, and no two ranks of a group can see
    different batches. What asking for one raises there is raised on all of the group.
    """
    if TP.is_alone:
        yield from items
        return
    source = iter(items) if TP.rank == 0 else None
    while True:
        found: tuple[T | None, Exception | None] = (None, None)
        if source is not None:
            try:
                found = (next(source), None)
            except Exception as error:
                found = (None, error)
        item, failure = TP.from_first(found)
        if isinstance(failure, StopIteration):
            return
        if failure is not None:
            raise failure
        yield item  # type: ignore[misc]


@dataclass(frozen=True)
class _State:
    """Of one rank in a round of `together`."""

    done: bool
    asked_to_stop: bool
    cut: bool
    """Its work has ended with Stopped."""
    refusal: UserError | None
    failed: bool


def together(action: Callable[[], T], hears_stop: bool = True) -> T:
    """Runs `action`, which may take any time and is not collective, on every rank; returns this rank's result.

    The ranks tell each other once a second how they stand, so that none runs into the limit of a collective while
    another works. A UserError of any rank is raised on all of them; so is Stopped when any was asked to stop before
    all were done, unless what is done had better be finished (hears_stop=False: a checkpoint). Any other error is
    raised where it happened, and PeerFailedError on the other ranks.
    """
    work = BackgroundWork(action)
    while True:
        work.join(ROUND_S)
        states = WORLD.gather_objects(_state_of(work))
        if work.error is not None and not isinstance(work.error, UserError | Stopped):
            raise work.error
        if any(state.failed for state in states):
            raise PeerFailedError
        if refusal := next((state.refusal for state in states if state.refusal), None):
            raise refusal
        cut = any(state.cut for state in states)
        if all(state.done for state in states) and not cut:
            return work.result()
        if cut or (hears_stop and any(state.asked_to_stop for state in states)):
            request_stop()  # heard by the work here, though the signal may have come to another rank
            work.join(STOP_GRACE_S)
            raise Stopped


def _state_of(work: BackgroundWork[T]) -> _State:
    done, error = work.is_done, work.error  # in this order: an error is there before its thread has ended
    return _State(
        done,
        asked_to_stop=stop_requested(),
        cut=isinstance(error, Stopped),
        refusal=error if isinstance(error, UserError) else None,
        failed=error is not None and not isinstance(error, UserError | Stopped),
    )


def first_rank_first(topology: Topology, action: Callable[[], T]) -> T:
    """Runs `action` on the first rank, then on the others: what it writes is written once. See `together`."""
    result = together(action if topology.is_writer else _nothing)
    others = together(_nothing if topology.is_writer else action)
    return result if topology.is_writer else others  # type: ignore[return-value]


def _nothing() -> None:
    """What a rank does while others work."""


def check_stop_together(device: torch.device) -> None:
    """Raises Stopped on all ranks when any was asked to stop: between two units of work that is collective."""
    if any_rank(stop_requested(), device):
        raise Stopped


def raise_together(error: Exception | None) -> NoReturn:
    """Ends what all ranks do, of which at least one has an error. Collective.

    A UserError or, where there is none, Stopped is raised on all ranks alike; any other error is raised where it
    happened, and PeerFailedError on the others.
    """
    if error is not None and not isinstance(error, UserError | Stopped):
        WORLD.gather_objects((None, True))
        raise error
    states: list[tuple[UserError | Stopped | None, bool]] = WORLD.gather_objects((error, False))
    if any(failed for _, failed in states):
        raise PeerFailedError
    errors = [found for found, _ in states if found is not None]
    raise next(
        (found for found in errors if isinstance(found, UserError)), max(errors, key=lambda e: len(str(e)))
    )


def each_together(items: Iterable[T], device: torch.device) -> Iterator[T]:
    """The items of every rank, which all have the same number of them.

    Raises Stopped on all ranks when any was asked to stop; what asking for an item raises on one rank ends all, as
    raise_together says.
    """
    source = iter(items)
    while True:
        error: Exception | None = None
        found: list[T] = []
        try:
            found += islice(source, 1)
            check_stop()
        except Exception as failure:
            error = failure
        if any_rank(error is not None, device):
            raise_together(error)
        if not found:
            return
        yield found[0]
