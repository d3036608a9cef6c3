"""The machines of a plan: given by name and numbers, or the ones that this process runs on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from git_scale.errors import ConfigError
from git_scale.formatting import GIB
from git_scale.monitoring.peak import Accelerator, accelerator_names, known_accelerator, peak_flops
from git_scale.planning.assumptions import CPU_LINK, EFFICIENCY, MARGIN, UNKNOWN_LINKS
from git_scale.planning.kernels import DeviceKind

# CUDA's context, NCCL's buffers, the workspaces of cuBLAS and cuDNN | Python with torch and DeepSpeed
LIBRARY_BYTES: Mapping[DeviceKind, int] = {"cuda": 3 * GIB // 2, "cpu": GIB // 2}


@dataclass(frozen=True)
class Cluster:
    """A cluster has equal devices in equal nodes."""

    device: str
    kind: DeviceKind
    world_size: int
    per_node: int
    memory: int
    """One rank has so many bytes of its device."""
    peak: float
    """One device computes so many FLOP/s at the run's precision."""
    intra: float
    """Two devices of a node exchange so many bytes/s in each direction."""
    inter: float
    """A device's share of the network between nodes carries so many bytes/s in each direction."""
    efficiency: float = EFFICIENCY

    @property
    def nodes(self) -> int:
        return -(-self.world_size // self.per_node)

    @property
    def usable(self) -> int:
        """The run itself has so many bytes."""
        return self.memory - LIBRARY_BYTES[self.kind]

    @property
    def usable_with_margin(self) -> int:
        """A good setting needs so many of these at most."""
        return self.usable - int(MARGIN * self.memory)


def accelerator_named(name: str) -> Accelerator:
    """Raises ConfigError for a name that accelerators.yaml does not have."""
    accelerator = known_accelerator(name)
    if accelerator is None:
        raise ConfigError(
            [f"--gpu {name}: not in accelerators.yaml, which has {', '.join(accelerator_names())}"]
        )
    return accelerator


def cluster_of(accelerator: Accelerator, precision: str, world_size: int, per_node: int) -> Cluster:
    """Its figures are those of accelerators.yaml."""
    return Cluster(
        device=accelerator.name,
        kind="cuda",
        world_size=world_size,
        per_node=min(per_node, world_size),
        memory=accelerator.memory,
        peak=accelerator.peak(precision),
        intra=accelerator.intra,
        inter=accelerator.inter,
    )


def this_cluster(device: torch.device, precision: str, world_size: int) -> Cluster:
    """A run that starts here has this device's memory, asked now, on all ranks."""
    peak = peak_flops(device, precision)
    if device.type != "cuda":
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or world_size)
        memory = _host_memory() // ranks
        return Cluster("CPU", "cpu", world_size, ranks, memory, peak, CPU_LINK, CPU_LINK)
    name = torch.cuda.get_device_name(device)
    known = known_accelerator(name)
    intra, inter = (known.intra, known.inter) if known else UNKNOWN_LINKS
    free, _ = torch.cuda.mem_get_info(device)  # what other programs hold is not ours
    memory = free + torch.cuda.memory_reserved(device)
    per_node = min(torch.cuda.device_count(), world_size)
    return Cluster(name, "cuda", world_size, per_node, memory, peak, intra, inter)


def _host_memory() -> int:
    """Bytes of this machine, or of the control group that this process was put in."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            physical = min(physical, int(Path(limit).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return physical
