"""Who am I among the processes of a run: arithmetic on the launcher's variables, nothing else."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace

from git_scale.errors import ConfigError, UserError

# torchrun and the deepspeed launcher | srun, one task per GPU
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)


@dataclass(frozen=True)
class Topology:
    """The place of this process among all of a run's processes.

    Neighbouring ranks form a tensor-parallel group, as in megatron-core: rank = dp_rank * tp + tp_rank.
    """

    world_size: int = 1
    global_rank: int = 0
    local_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = 0
    tp: int = 1
    """Tensor-parallel degree; divides world_size."""

    @property
    def dp(self) -> int:
        """Data-parallel degree."""
        return self.world_size // self.tp

    @property
    def dp_rank(self) -> int:
        return self.global_rank // self.tp

    @property
    def tp_rank(self) -> int:
        return self.global_rank % self.tp

    def with_tp(self, tp: int) -> Topology:
        """Raises ConfigError when groups of `tp` ranks do not make up the world."""
        if self.world_size % tp:
            fitting = max(degree for degree in range(1, tp + 1) if self.world_size % degree == 0)
            raise ConfigError(
                [
                    f"parallel.tp={tp} does not divide the {self.world_size} processes: set parallel.tp={fitting}"
                ]
            )
        return replace(self, tp=tp)

    @property
    def is_writer(self) -> bool:
        """The one process that writes logs and publishes files."""
        return self.global_rank == 0


def topology_from(environment: Mapping[str, str]) -> Topology:
    """Reads torchrun's, deepspeed's or srun's variables; a process started alone is a world of one.

    SLURM's variables count inside a job step only: the batch script sees SLURM_PROCID too, but is alone.
    """
    for rank, world, local in _LAUNCHERS:
        if world in environment and rank in environment:
            world_size = _number(environment, world)
            return Topology(
                world_size=world_size,
                global_rank=_number(environment, rank),
                local_rank=_number(environment, local),
                master_addr=_master_addr(environment, world_size),
                master_port=_number(environment, "MASTER_PORT") or _default_port(environment, world_size),
            )
    return Topology(master_port=free_port())


def is_first_rank() -> bool:
    """Whether this process speaks for all of its launcher's; a process started alone does."""
    try:
        return topology_from(os.environ).is_writer
    except UserError:  # of the launcher's variables: every process says so
        return True


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name) or "0"
    if not text.isdigit():
        raise UserError(f"{name}={text!r} in the environment is no number: it is the launcher's to set")
    return int(text)


def _master_addr(environment: Mapping[str, str], world_size: int) -> str:
    if address := environment.get("MASTER_ADDR"):
        return address
    if world_size == 1 or environment.get("SLURM_STEP_NUM_NODES") == "1":
        return "127.0.0.1"
    if address := environment.get("SLURM_LAUNCH_NODE_IPADDR"):
        return address
    raise UserError(
        f"MASTER_ADDR is not set for {world_size} processes: export the address of the first node"
        " (torchrun, deepspeed and slurm/env.sh do)"
    )


def _default_port(environment: Mapping[str, str], world_size: int) -> int:
    """A port that all tasks of a SLURM job agree on and that other jobs of the node do not share."""
    if world_size == 1:
        return free_port()
    return 20000 + (_number(environment, "SLURM_JOB_ID") or 9500) % 20000


def free_port() -> int:
    """A port of this machine that nobody listens on.

    Below 32768, where Linux begins to hand out ports to outgoing connections: one of those could be taken by a
    neighbour's connection before the rendezvous listens on it.
    """
    draw = random.SystemRandom()  # the run's random state is not to be moved, nor to decide
    for _ in range(100):
        port = draw.randrange(20000, 32768)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise UserError("no free port between 20000 and 32767: set MASTER_PORT")
