"""A rank ends with its launcher, and a process that was started alone does not end with its shell."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from git_scale import processes
from git_scale.parallel.topology import free_port
from git_scale.processes import Listener, Process, find_process, is_alive, launcher_processes
from git_scale.stop import StopRequest

LIMIT_S = 300
ROOT = Path(__file__).parents[1]

RANK = """
import os, sys, threading
import git_scale.exit
from git_scale.processes import end_with, launcher_processes
from git_scale.stop import StopRequest

mark = os.path.join(sys.argv[-1], os.environ["RANK"])
with StopRequest() as stop:
    end_with(launcher_processes())
    with open(mark + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(mark + ".new", mark)
    while not stop:
        threading.Event().wait(0.05)
    os.rename(mark, mark + ".stopped")
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """In a session of its own: whatever is left of it at the end is killed."""
    # a shell starts what runs in its background with SIGINT ignored, and children would inherit that
    launcher = subprocess.Popen(
        command, env=environment(), start_new_session=True, preexec_fn=_hear_interrupts
    )
    try:
        yield launcher
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(marks: list[Path], launcher: subprocess.Popen[bytes]) -> list[int]:
    """The numbers of the ranks, once all of them are there."""
    deadline = time.monotonic() + LIMIT_S
    while not all(mark.exists() for mark in marks):
        assert time.monotonic() < deadline
        with contextlib.suppress(subprocess.TimeoutExpired):  # a pause that leaves the core to them
            pytest.fail(f"the launcher ended with code {launcher.wait(timeout=0.1)}")
    return [int(mark.read_text()) for mark in marks]


def ends(pid: int, limit_s: float) -> bool:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    over = bool(poll.poll(1000 * limit_s))
    os.close(handle)
    return over


def torchrun() -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def deepspeed() -> list[str]:
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    return [launcher, "--num_gpus", "2", "--master_port", str(free_port())]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        (torchrun, signal.SIGKILL),
        (deepspeed, signal.SIGKILL),
        (deepspeed, signal.SIGTERM),
        (deepspeed, signal.SIGINT),
    ],
    ids=lambda value: getattr(value, "__name__", getattr(value, "name", "")),
)
def test_ranks_end_with_their_launcher(launcher, number: signal.Signals, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The launcher alone is killed: under deepspeed that leaves a helper alive between it and the ranks."""
    (tmp_path / "rank.py").write_text(RANK)
    marks = [tmp_path / str(rank) for rank in range(2)]
    with started(*launcher(), str(tmp_path / "rank.py"), str(tmp_path)) as running:
        ranks = wait_for(marks, running)
        running.send_signal(number)
        assert all(ends(pid, limit_s=60) for pid in ranks)
        assert all(mark.with_suffix(".stopped").exists() for mark in marks), "by themselves, not killed"


TEST_PROCESS = """
import os, sys, threading
from git_scale.testing.distributed import run_distributed

def rank(topology, device, folder):
    mark = os.path.join(folder, str(topology.global_rank))
    with open(mark + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(mark + ".new", mark)
    threading.Event().wait()

if __name__ == "__main__":
    run_distributed(rank, 2, sys.argv[1])
"""


@pytest.mark.distributed
def test_ranks_of_a_test_end_with_the_test_process(tmp_path: Path) -> None:
    (tmp_path / "a_test.py").write_text(TEST_PROCESS)
    marks = [tmp_path / str(rank) for rank in range(2)]
    with started(sys.executable, str(tmp_path / "a_test.py"), str(tmp_path)) as running:
        ranks = wait_for(marks, running)
        running.kill()
        assert all(ends(pid, limit_s=60) for pid in ranks)


ALONE = """
import os, sys
import git_scale.exit
from git_scale.processes import launcher_processes
print(len(launcher_processes()), flush=True)
"""


def test_of_a_shell_nobody_depends_on() -> None:
    """A user's start script may set the launcher's variables itself, start the ranks and end."""
    shell = subprocess.run(
        ["sh", "-c", '"$0" -c "$1"; true', sys.executable, ALONE],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert shell.stdout == "0\n", shell.stderr


def test_of_another_program_that_starts_ranks_they_do() -> None:
    again = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    done = subprocess.run(
        [sys.executable, "-c", again, ALONE], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "1\n", done.stderr


def chain(monkeypatch: pytest.MonkeyPatch, *parents: tuple[str, str]) -> list[int] | None:
    """What would be watched under parents of these names and command lines, the nearest first."""
    named = {100 + place: both for place, both in enumerate(parents)}
    monkeypatch.setattr(processes, "_PARENT", 100)
    monkeypatch.setattr(os, "getppid", lambda: 100)
    monkeypatch.setattr(
        processes, "_stat", lambda pid: ["S", str(pid + 1), *["0"] * 18] if pid in named else []
    )
    monkeypatch.setattr(processes, "_name", lambda pid: named[pid][0])
    monkeypatch.setattr(processes, "_command", lambda pid: named[pid][1])
    found = launcher_processes()
    return None if found is None else [known.pid - 100 for known in found if isinstance(known, Process)]


def test_what_is_watched_reaches_up_to_the_launcher_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    shell, tmux = ("bash", "-bash"), ("tmux", "tmux new")
    torchrun_ = ("python", "python /venv/bin/torchrun --nproc-per-node 8 tools/pretrain.py")
    helper = ("python", "python -u -m deepspeed.launcher.launch --world_info=x tools/pretrain.py")
    runner = ("deepspeed", "python /venv/bin/deepspeed tools/pretrain.py")
    step, daemon = ("slurmstepd", "slurmstepd: [7.0]"), ("slurmd", "/usr/sbin/slurmd")
    assert chain(monkeypatch, torchrun_, shell, tmux) == [0]
    assert chain(monkeypatch, helper, runner, shell, tmux) == [0, 1]
    assert chain(monkeypatch, step, daemon) == [0]
    assert chain(monkeypatch, torchrun_, step, daemon) == [0, 1]
    assert chain(monkeypatch, shell, ("mpirun", "mpirun -n 2 run.sh"), shell) == [0, 1], "mpirun bash -c"
    assert chain(monkeypatch, shell, tmux) == []
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert launcher_processes() is None, "it was gone before this rank could look"


def test_a_rank_that_does_not_end_by_itself_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(number))
    waited: list[float] = []
    with StopRequest() as stop:
        processes._watch([Process(1, -1)], 60.0, waited.append)
        assert stop
    assert (waited, killed) == ([60.0], [signal.SIGKILL])


def test_nothing_is_watched_where_nothing_is_to_be() -> None:
    before = threading.active_count()
    processes.end_with([])
    assert threading.active_count() == before


def test_srun_is_known_by_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_parents", list)
    with socket.socket() as srun:
        srun.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as SLURM does; else 60 s later
        srun.bind(("0.0.0.0", 0))
        srun.listen()
        port = srun.getsockname()[1]
        monkeypatch.setenv("SLURM_SRUN_COMM_PORT", str(port))
        assert launcher_processes() == []
        monkeypatch.setenv("SLURM_LAUNCH_NODE_IPADDR", "192.0.2.77")  # another node's
        assert launcher_processes() == []
        monkeypatch.setenv("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
        assert launcher_processes() == [Listener("127.0.0.1", port)]
        with socket.create_connection(("127.0.0.1", port)), srun.accept()[0]:
            assert is_alive(Listener("127.0.0.1", port))
    assert not is_alive(Listener("127.0.0.1", port))
    assert launcher_processes() == [], "left over in the environment"


def test_a_process_is_known_by_its_start_and_not_by_its_number_alone() -> None:
    here = find_process(os.getpid())
    assert here is not None and is_alive(here)
    assert not is_alive(Process(here.pid, here.started + 1))
    assert find_process(2**22 + 1) is None
    assert processes.namespace() == processes.namespace() != ""
