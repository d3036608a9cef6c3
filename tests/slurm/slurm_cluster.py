"""A SLURM of this machine's own: a controller and its nodes on loopback, in one folder, gone at the end."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import psutil

from git_scale.parallel.topology import free_port

DAEMONS = ("munged", "slurmctld", "slurmd")
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL")
# What sbatch, srun and the launchers would take for the surroundings of an outer job.
FOREIGN = ("SLURM_", "SBATCH_", "SRUN_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "GIT_SCALE_")

_CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={port}
AuthType=auth/munge
# cred_expire: the pause before a requeued job may start again (120 s unless told, 5 at least)
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
# no cgroups and no binding: neither root's rights over the machine nor a second node's cores are at hand
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
SchedulerParameters=sched_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
{node_lines}PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE
"""


def missing_programs() -> list[str]:
    return [name for name in (*DAEMONS, "sbatch", "setpriv") if shutil.which(name) is None]


class SlurmCluster:
    """Starts on entry, ends every job and process on exit. `folder` must be short: a socket lies in it.

    Nodes n1, n2, ... claim `cpus` and `gpus` whatever the machine has; the GPUs are names of /dev/null.
    """

    def __init__(self, folder: Path, nodes: int = 2, cpus: int = 2, gpus: int = 0) -> None:
        self.folder = folder
        self.config = folder / "slurm.conf"
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        foreign = [name for name in os.environ if name.startswith(FOREIGN)]
        self.environment = {name: value for name, value in os.environ.items() if name not in foreign}
        self.environment |= {"SLURM_CONF": str(self.config), "CUDA_VISIBLE_DEVICES": ""}
        self._cpus, self._gpus = cpus, gpus
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._configure()
        for name in ("state", *(f"spool-{node}" for node in self.nodes)):
            (self.folder / name).mkdir()
        ready = f"{len(self.nodes)} idle"
        try:
            self._start_munge()
            self._start("slurmctld", "-D", "-f", str(self.config))
            for node in self.nodes:
                self._start("slurmd", "-D", "-N", node, "-f", str(self.config))
            poll(lambda: self._run("sinfo", "--noheader", "--format=%D %t") == ready, 240, self._logs)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _configure(self) -> None:
        host, (port, *ports) = socket.gethostname().partition(".")[0], self._ports()
        gres = f"Gres=gpu:{self._gpus}" if self._gpus else ""
        node_lines = "".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={self._cpus} {gres}\n"
            for node, port in zip(self.nodes, ports, strict=True)
        )
        user, folder = getpass.getuser(), self.folder
        self.config.write_text(
            _CONFIG.format(host=host, user=user, port=port, folder=folder, node_lines=node_lines)
        )
        for number in range(self._gpus):  # devices: tasks are told of no others
            (folder / f"gpu{number}").symlink_to("/dev/null")
        if self._gpus:
            (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{self._gpus - 1}]\n")

    def _ports(self) -> set[int]:
        """The controller's and the nodes'."""
        ports: set[int] = set()
        while len(ports) <= len(self.nodes):
            ports.add(free_port())
        return ports

    def __exit__(self, *_: object) -> None:
        subprocess.run(["scancel", "--user", getpass.getuser()], env=self.environment, capture_output=True)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in self.processes():  # tasks and their keepers, which outlive slurmd
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                process.wait(timeout=30)

    def processes(self) -> list[psutil.Process]:
        """Everything that runs in this cluster, but not what asks."""
        others = (process for process in psutil.process_iter() if process.pid != os.getpid())
        return [process for process in others if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        """Tasks have the configuration in their environment; slurmstepd, which wipes its own, a log open."""
        try:
            if process.environ().get("SLURM_CONF") == str(self.config):
                return True
            return any(Path(file.path).is_relative_to(self.folder) for file in process.open_files())
        except psutil.Error:
            return False

    def submit(
        self, script: str, *arguments: str, options: tuple[str, ...] = (), cwd: Path, **more: str
    ) -> str:
        """The id of a new job."""
        command = ["sbatch", "--parsable", *options, script, *arguments]
        return self._run(*command, cwd=cwd, environment=more)

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says of it: JobState, ExitCode, Restarts, ..."""
        words = self._run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def ended(self, job: str, timeout_s: float = 800) -> dict[str, str]:
        """Waits until the job is over, requeues included."""
        self._await(lambda: self.job(job)["JobState"] in OVER, job, timeout_s)
        return self.job(job)

    def runs_until(self, is_done: Callable[[], bool], job: str, timeout_s: float = 800) -> None:
        """Waits until `is_done`; TimeoutError at once when the job is over before."""
        self._await(lambda: is_done() or self.job(job)["JobState"] in OVER, job, timeout_s)
        if not is_done():
            raise TimeoutError(f"the job is over: {self.job(job)}")

    def _await(self, is_done: Callable[[], bool], job: str, timeout_s: float) -> None:
        poll(is_done, timeout_s, lambda: f"{self.job(job)}{self._logs()}")

    def signal(self, job: str, name: str) -> None:
        """To the tasks of the job, as SLURM does it ahead of the time limit."""
        self._run("scancel", f"--signal={name}", job)

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        socket_path = self.folder / "munge.socket"
        files = (f"--key-file={key}", f"--socket={socket_path}", f"--pid-file={self.folder}/munge.pid")
        more = (f"--log-file={self.folder}/munge.log", f"--seed-file={self.folder}/munge.seed")
        self._start("munged", "--foreground", "--force", *files, *more)
        poll(socket_path.exists, 240, self._logs)

    def _start(self, *command: str) -> None:
        """A daemon that the kernel ends if this process dies without its clean-up."""
        log = (self.folder / "daemons.log").open("ab")
        tied = ["setpriv", "--pdeathsig", "KILL", *command]
        self._daemons.append(subprocess.Popen(tied, env=self.environment, stdout=log, stderr=log))
        log.close()

    def _run(self, *command: str, cwd: Path | None = None, environment: Mapping[str, str] = {}) -> str:
        surroundings = {**self.environment, **environment}
        done = subprocess.run(command, cwd=cwd, env=surroundings, capture_output=True, text=True, timeout=600)
        if done.returncode:
            if command[0] == "sinfo":  # the controller is not up yet
                return ""
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def _logs(self) -> str:
        logs = sorted(self.folder.glob("*.log"))
        return "".join(f"\n--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)


def poll(is_done: Callable[[], bool], timeout_s: float, describe: Callable[[], str]) -> None:
    """Asks until the answer is yes; raises TimeoutError with a description otherwise."""
    deadline = time.monotonic() + timeout_s
    while not is_done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s:\n{describe()}")
        time.sleep(0.1)
