"""The process groups of this run."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from git_scale.parallel.topology import Topology


@dataclass
class Groups:
    """The process groups of this run; None: all ranks (dp), this rank alone (tp)."""

    dp: dist.ProcessGroup | None = None
    tp: dist.ProcessGroup | None = None


GROUPS = Groups()


def mpu_of(topology: Topology) -> Any:
    """The groups as DeepSpeed wants them; None without tensor parallelism. Collective at the first call.

    megatron-core is needed, and imported, for tensor parallelism alone.
    """
    if topology.tp == 1:
        return None
    # It misses Transformer Engine for optimizers that are not used here, and a CUDA setting that slurm/env.sh weighs.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.core")
    from git_scale.parallel.mpu import Mpu

    return Mpu(topology.tp)
