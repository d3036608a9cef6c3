"""Who am I among the processes of a run: arithmetic on the launcher's variables, nothing else."""

from __future__ import annotations

import os
import random
import socket
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from git_scale.errors import ConfigError, UserError


class _Launcher(NamedTuple):
    """The variables of one kind; where `local_size` says that all ranks are on one node, no address is needed."""

    rank: str
    world: str
    local: str
    local_size: str = ""


# In the order in which they count: an MPI inside a SLURM job starts its helpers by srun, and ranks see both.
_LAUNCHERS = (
    _Launcher("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # torchrun and the deepspeed launcher
    *(
        _Launcher(*(f"{kind}_COMM_WORLD_{part}" for part in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")))
        for kind in ("OMPI", "MV2")  # mpirun of Open MPI (its mpiexec, jsrun) and of MVAPICH2
    ),
    _Launcher("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),  # srun, one task per GPU
    _Launcher("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),  # mpiexec of MPICH and Intel MPI
)
_TRACES = (
    "PMIX_RANK",
    *(name for kind in _LAUNCHERS for name in (kind.rank, kind.world) if "SLURM" not in name),
)
"""What only a launcher sets: a process that sees one of them is not alone."""


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
    is_launched: bool = field(default=False, compare=False)
    """By a launcher, with which it is to end."""

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
    """Reads the variables of torchrun, deepspeed, mpirun or srun; a process started alone is a world of one.

    SLURM's variables count inside a job step only: the batch script sees SLURM_PROCID too, but is alone.
    Raises UserError where a launcher has left a trace but not all that is needed: so many processes that each took
    itself to be alone would all train the same run.
    """
    launcher = _launcher_of(environment)
    if launcher is None:
        return Topology(master_port=free_port())
    world_size = _number(environment, launcher.world)
    return Topology(
        world_size=world_size,
        global_rank=_number(environment, launcher.rank),
        local_rank=_number(environment, launcher.local),
        master_addr=_master_addr(environment, launcher, world_size),
        master_port=_number(environment, "MASTER_PORT") or _default_port(environment, world_size),
        is_launched=True,
    )


def _launcher_of(environment: Mapping[str, str]) -> _Launcher | None:
    """The first whose variables are all there; the tasks of srun under an MPI's helper are the MPI's ranks."""
    complete = [kind for kind in _LAUNCHERS if _is_complete(kind, environment)]
    slurm, pmi = _LAUNCHERS[-2:]
    if complete == [slurm, pmi] and environment[slurm.world] != environment[pmi.world]:
        return pmi
    if complete:
        return complete[0]
    if traces := [name for name in _TRACES if name in environment]:
        shown = ", ".join(f"{name}={environment[name]}" for name in traces)
        raise UserError(
            f"{shown} in the environment: a launcher has started this process, but not all that it should say is"
            " there. Start by torchrun, deepspeed, srun or mpirun, or set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR"
            " and MASTER_PORT; to start alone, unset what is left over"
        )
    return None


def _is_complete(kind: _Launcher, environment: Mapping[str, str]) -> bool:
    """An MPI's ranks must know their place on the node; others may be alone there."""
    needed = (kind.rank, kind.world, *((kind.local,) if kind.local_size else ()))
    return all(name in environment for name in needed)


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


def _master_addr(environment: Mapping[str, str], launcher: _Launcher, world_size: int) -> str:
    if address := environment.get("MASTER_ADDR"):
        return address
    if launcher.local_size and environment.get(launcher.local_size) == environment[launcher.world]:
        return "127.0.0.1"
    if world_size == 1 or (not launcher.local_size and environment.get("SLURM_STEP_NUM_NODES") == "1"):
        return "127.0.0.1"
    if address := environment.get("SLURM_LAUNCH_NODE_IPADDR"):
        return address
    raise UserError(
        f"MASTER_ADDR is not set for {world_size} processes: export the address of the first node"
        " (torchrun, deepspeed and slurm/env.sh do)"
    )


def _default_port(environment: Mapping[str, str], world_size: int) -> int:
    """A port that all tasks of a SLURM or MPI job agree on and that other jobs of the node hardly share."""
    if world_size == 1:
        return free_port()
    job = _number(environment, "SLURM_JOB_ID") or zlib.crc32(environment.get("PMIX_NAMESPACE", "").encode())
    return 20000 + (job or 9500) % 20000


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
