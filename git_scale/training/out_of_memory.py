"""A device that runs out of memory: in which phase, what the plan had foreseen, and which settings need less.

with in_phase("step 12"):
    trainer.train_step()  # an allocation that fails becomes OutOfMemory("step 12", ...)
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from git_scale.config import RunConfig
from git_scale.errors import ConfigError
from git_scale.formatting import GIB
from git_scale.planning.cluster import Cluster
from git_scale.planning.plan import plan
from git_scale.planning.search import nearest

log = logging.getLogger(__name__)

# What allocators and libraries say that raise a plain RuntimeError: torch's on the host, cuBLAS, CUDA itself, NCCL.
MARKS = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory", "cudaErrorMemoryAllocation")
LESS = 0.9
"""Of the planned memory: a setting that saves less than a tenth is no way out."""


class OutOfMemory(Exception):  # noqa: N818 - as torch names it, with the phase
    """No memory was left in a phase of the run."""

    def __init__(self, phase: str, cause: BaseException) -> None:
        super().__init__(f"out of memory in {phase}: {_first_line(cause)}")


@contextmanager
def in_phase(name: str) -> Iterator[None]:
    """Raises OutOfMemory, which names the innermost phase, for an allocation that fails within the block."""
    try:
        yield
    except Exception as error:
        if ran_out(error):
            raise OutOfMemory(name, error) from error
        raise


def ran_out(error: Exception) -> bool:
    """Whether memory was what lacked: allocators of Python, torch, CUDA and the system tell it in different ways."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in MARKS)


def explain(
    failure: OutOfMemory, rank: int, run: RunConfig, ds_config: dict[str, Any], cluster: Cluster
) -> str:
    """One message: the rank and phase, what the plan had foreseen, the nearest settings that need less."""
    lines = [f"rank {rank}: {failure}"]
    try:
        planned = plan(run, ds_config, cluster)
    except (ConfigError, MemoryError):  # it was planned at the start; now the host may have no memory for it
        return lines[0]
    own = planned.own
    lines.append(
        f"  the plan had foreseen {own.memory.total / GIB:.1f} of {cluster.memory / GIB:.1f} GiB per device, most of"
        f" it in {own.memory.phase}, for {own.setting}"
    )
    smaller = [estimate for estimate in planned.fitting if estimate.memory.total <= LESS * own.memory.total]
    if close := nearest(smaller, own.setting):
        lines.append("  settings near it that need less:")
        lines += [f"    {estimate.setting} ({estimate.memory.total / GIB:.1f} GiB)" for estimate in close]
    else:
        lines.append(
            "  no setting of tp, ZeRO stage, micro_batch and checkpointing needs less: take more devices"
        )
    lines.append(
        "  checkpoints are as they were: the same command with another setting goes on from the last one"
    )
    return "\n".join(lines)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
