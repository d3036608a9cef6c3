"""Run a function on several gloo processes of this machine, as a test would.

def sums(topology, device, number):
    return float(sum_over_dp(torch.tensor(float(number * topology.dp_rank))))

assert run_distributed(sums, 2, 10) == [10.0, 10.0]
"""

from __future__ import annotations

import multiprocessing as mp
import os
import queue
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

from git_scale.parallel.topology import free_port, topology_from
from git_scale.processes import end_with, find_process

# Processes fork from a server that has imported torch and DeepSpeed once: 0.1 s each instead of 8.
_CONTEXT = mp.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["git_scale.testing.preload"])


def run_distributed(
    function: Callable[..., Any], world_size: int, *args: Any, tp: int = 1, timeout_s: float = 600
) -> list[Any]:
    """`function(topology, device, *args)` on every rank; returns the results in rank order.

    tp: neighbouring ranks form tensor-parallel groups of so many.

    `function` and what it takes and returns must be picklable. Raises RuntimeError with the rank's traceback
    when one fails, TimeoutError when not all have ended in time; no process is left behind either way.
    """
    results = _CONTEXT.Queue()
    port = free_port()
    processes = [
        _CONTEXT.Process(
            target=_run_rank, args=(function, rank, world_size, tp, port, results, args), daemon=False
        )
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    try:
        return _collect(processes, results, timeout_s)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _collect(processes: Sequence[BaseProcess], results: Any, timeout_s: float) -> list[Any]:
    answers: dict[int, Any] = {}
    deadline = time.monotonic() + timeout_s
    while len(answers) < len(processes):
        try:
            rank, answer, failure = results.get(timeout=0.2)
        except queue.Empty:
            _check_alive(processes, answers, deadline)
            continue
        if failure:
            raise RuntimeError(f"rank {rank} failed:\n{failure}")
        answers[rank] = answer
    return [answers[rank] for rank in range(len(processes))]


def _check_alive(processes: Sequence[BaseProcess], answers: dict[int, Any], deadline: float) -> None:
    missing = [rank for rank in range(len(processes)) if rank not in answers]
    for rank in missing:
        if processes[rank].exitcode:
            raise RuntimeError(f"rank {rank} died with exit code {processes[rank].exitcode}")
    if time.monotonic() > deadline:
        raise TimeoutError(f"ranks {missing} gave no answer in time")


def _run_rank(
    function: Callable[..., Any],
    rank: int,
    world_size: int,
    tp: int,
    port: int,
    results: Any,
    args: tuple[Any, ...],
) -> None:
    import torch

    from git_scale.parallel.engine import start_processes, stop_processes

    tester = mp.parent_process()  # not the server that this process was forked from, which outlives it
    assert tester is not None and tester.pid is not None
    known = find_process(tester.pid)
    end_with([known] if known else None, grace_s=0)
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1"
    )
    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)
    try:
        topology = topology_from(os.environ).with_tp(tp)
        answer = function(topology, start_processes(topology), *args)
        stop_processes()
        results.put((rank, answer, None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
