"""What the system says of other processes, and the watch of a rank over what has started it.

A launcher that is killed cannot end its ranks: as orphans they would train on, hold the port and write beside the
next start. So each of them looks after its launcher.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from git_scale.stop import request_stop

log = logging.getLogger(__name__)

GRACE_S = 60.0
"""For a rank without its launcher to end its step, save and leave; then it is killed."""

LOOK_EVERY_S = 0.5

LAUNCHERS = (
    *("torchrun", "torch.distributed", "torch/distributed", "accelerate", "deepspeed", "sshd"),
    *("slurmstepd", "mpirun", "mpiexec", "orterun", "prterun", "orted", "prted", "hydra", "pmi_proxy"),
)
"""Words in the command lines of launchers and of their helpers on a node."""

SHELLS = ("sh", "bash", "dash", "zsh", "ksh", "fish", "csh", "tcsh")
"""What a user starts a single process from, and may end before it."""


class Process(NamedTuple):
    """One process: numbers are given again, together with the time of the start they are unique."""

    pid: int
    started: int
    """In clock ticks since the machine was booted."""


class Listener(NamedTuple):
    """srun on this node: no parent of its tasks, whose keepers (slurmstepd) outlive it, but it listens for them."""

    address: str
    port: int


def find_process(pid: int) -> Process | None:
    """None when there is none of this number, or its parent has not taken note of its end yet."""
    fields = _stat(pid)
    return Process(pid, int(fields[19])) if fields and fields[0] not in "ZX" else None


def is_alive(known: Process | Listener) -> bool:
    if isinstance(known, Process):
        return find_process(known.pid) == known
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that are over do not count
        try:
            probe.bind(known)
        except OSError:
            return True
    return False


def namespace() -> str:
    """Of the numbers of processes: this machine since its last start, and the container; empty where unknown."""
    try:
        return f"{_read('/proc/sys/kernel/random/boot_id').strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


# Taken when this module is imported, by a tool among the first: seconds later the launcher may be gone.
_PARENT = os.getppid()


def launcher_processes() -> list[Process | Listener] | None:
    """What this process, a rank, is to end with: its parents up to its launcher and the launcher's own, and srun.

    Without a known launcher the parent alone, unless that is a shell. None when the parent is gone already. An srun
    on another node cannot be watched without a word from it at each look.
    """
    if os.getppid() != _PARENT:
        return None
    return [*_parents(), *_srun(os.environ)]


def _parents() -> list[Process]:
    parents: list[Process] = []
    found = False
    pid = _PARENT
    while pid > 1 and (parent := find_process(pid)) is not None:
        is_launcher = any(word in _command(pid) for word in LAUNCHERS)
        if found and not is_launcher:
            break
        found = found or is_launcher
        parents.append(parent)
        pid = int(_stat(pid)[1])
    if found:
        return parents
    return [parent for parent in parents[:1] if _name(parent.pid) not in SHELLS]


def _srun(environment: Mapping[str, str]) -> list[Listener]:
    try:
        listener = Listener(environment["SLURM_LAUNCH_NODE_IPADDR"], int(environment["SLURM_SRUN_COMM_PORT"]))
        with socket.socket() as here:
            here.bind((listener.address, 0))  # fails for an address of another node
    except (KeyError, ValueError, OSError):
        return []
    return [listener] if is_alive(listener) else []


def end_with(known: Sequence[Process | Listener] | None, grace_s: float = GRACE_S) -> None:
    """Stops this process as a signal would once one of `known` is gone, and kills it `grace_s` later.

    None: one of them is gone already.
    """
    if known is None or known:
        threading.Thread(target=_watch, args=(known, grace_s, threading.Event().wait), daemon=True).start()


def _watch(
    known: Sequence[Process | Listener] | None, grace_s: float, pause: Callable[[float], object]
) -> None:
    while known is not None and all(map(is_alive, known)):
        pause(LOOK_EVERY_S)
    if grace_s:
        log.error("the launcher of this process is gone: it stops, within %d s", grace_s)
        request_stop()
        pause(grace_s)
    os.kill(os.getpid(), signal.SIGKILL)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty when there is no such process (or no /proc)."""
    try:
        return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()  # names may hold anything, also ")"
    except OSError:
        return []


def _command(pid: int) -> str:
    try:
        return _read(f"/proc/{pid}/cmdline").replace("\0", " ")
    except OSError:
        return ""


def _name(pid: int) -> str:
    try:
        return _read(f"/proc/{pid}/comm").strip()
    except OSError:
        return ""


def _read(path: str) -> str:
    return Path(path).read_bytes().decode("utf-8", "replace")
