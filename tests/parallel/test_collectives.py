"""What ranks do together while one of them works, fails, refuses or is asked to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from git_scale.errors import DataError, PeerFailedError, UserError
from git_scale.parallel import collectives
from git_scale.parallel.comm import WORLD
from git_scale.parallel.topology import Topology
from git_scale.stop import Stopped, StopRequest, check_stop
from git_scale.testing.distributed import run_distributed

ROUNDS = 5


def outcome_of(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except (UserError, Stopped, PeerFailedError, ZeroDivisionError) as error:
        return f"{type(error).__name__}: {error}"


def long_work(topology: Topology, device: torch.device) -> tuple[int, int]:
    """The first rank works until the others have asked it so often; rounds and result here."""
    collectives.ROUND_S = 0.01
    enough, rounds = threading.Event(), 0
    gather = WORLD.gather_objects

    def counted(item: Any) -> Any:
        nonlocal rounds
        rounds += 1
        if rounds == ROUNDS:
            enough.set()
        return gather(item)

    WORLD.gather_objects = counted  # type: ignore[method-assign]
    result = collectives.together(lambda: enough.wait(60) if topology.is_writer else topology.global_rank)
    return rounds, int(result)


@pytest.mark.distributed
def test_no_rank_waits_in_one_collective_for_the_work_of_another() -> None:
    (here, worked), (there, result) = run_distributed(long_work, 2)
    assert here == there >= ROUNDS
    assert (worked, result) == (1, 1)


def endings(topology: Topology, device: torch.device) -> list[Any]:
    """Each action ends badly on one rank alone."""
    collectives.ROUND_S = 0.01
    is_last = topology.global_rank == topology.world_size - 1
    never = threading.Event()

    def refuses() -> str:
        if is_last:
            raise DataError("a.tar: damaged")
        return "read"

    def fails() -> float:
        return 1 / (0 if is_last else 1)

    return [
        outcome_of(lambda: collectives.together(refuses)),
        outcome_of(lambda: collectives.together(fails)),
        outcome_of(lambda: collectives.together(lambda: never.wait(60) if topology.is_writer else fails())),
        outcome_of(lambda: collectives.first_rank_first(topology, refuses)),
        outcome_of(lambda: collectives.first_rank_first(topology, lambda: topology.global_rank)),
    ]


@pytest.mark.distributed
def test_what_ends_badly_on_one_rank_ends_on_all() -> None:
    refused = "DataError: a.tar: damaged"
    first, last = run_distributed(endings, 2)
    assert first == [refused, "PeerFailedError: ", "PeerFailedError: ", refused, 0]
    assert last == [refused, *["ZeroDivisionError: division by zero"] * 2, refused, 1]


def stopped(topology: Topology, device: torch.device) -> list[Any]:
    """The last rank gets a signal while the first works: at what looks, at what hangs, at a save."""
    collectives.ROUND_S, collectives.STOP_GRACE_S = 0.01, 0.1
    looked, hung = threading.Event(), threading.Event()

    def looks() -> str:
        while True:
            try:
                check_stop()
            except Stopped:
                looked.set()
                raise

    def signalled(work: Callable[[], Any]) -> Any:
        with StopRequest() as stop:
            if not topology.is_writer:
                signal.raise_signal(signal.SIGTERM)
            return outcome_of(work), bool(stop)

    def save() -> str:
        return "saved"

    return [
        signalled(lambda: collectives.together(looks if topology.is_writer else save)),
        looked.is_set() == topology.is_writer,
        signalled(lambda: collectives.together((lambda: hung.wait(60)) if topology.is_writer else save)),
        signalled(lambda: collectives.together(save, hears_stop=False)),
        signalled(lambda: collectives.check_stop_together(device)),
    ]


@pytest.mark.distributed
def test_a_stop_on_one_rank_cuts_the_work_of_all() -> None:
    cut = ("Stopped: ", True)
    first, last = run_distributed(stopped, 2)
    assert first == [cut, True, cut, ("saved", False), ("Stopped: ", False)]
    assert last == [cut, True, cut, ("saved", True), cut]
