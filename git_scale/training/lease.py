"""Who owns a run's folder: RUN_DIR/lease.json, which its owner renews while it lives.

Two starts in one folder (a requeue beside a survivor, the orphans of a killed launcher) would each delete and replace
what the other writes. So the first rank holds a lease, and no second start goes on beside it.

It is made by a hard link, so that it appears whole and once, and renewed in place through the file that its owner
holds open: a former owner that wakes up late writes into a file that nobody sees. That works on network file systems,
without locks. Whether an owner still lives is judged by whether the content changes while one watches, by the
watcher's own clock; on the same machine also by whether its process is there.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from git_scale.errors import UserError
from git_scale.processes import Process, find_process, is_alive, namespace
from git_scale.stop import check_stop, request_stop

log = logging.getLogger(__name__)

LEASE = "lease.json"
RENEW_S = 10.0
STALE_S = 60.0
"""An owner whose lease has not changed for so long is gone, or has lost its disk."""
WAIT_S = 120.0
"""For the owner's end: longer than STALE_S, so that a requeue beside a survivor, or behind a crash, goes on."""
LOOK_EVERY_S = 1.0

_SIZE = 1024  # bytes of the file, all of them renewed at once
_JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")

Clock = Callable[[], float]


@dataclass(frozen=True)
class LeaseHolder:
    """Says who holds a run: the content of a lease."""

    host: str
    job: str
    """Of the scheduler; empty without one."""
    pid: int
    since: str
    """UTC, as the next one; for people: nothing is judged by the clock of another machine."""
    renewed: str
    started: int
    """Of the process, in clock ticks since the boot."""
    namespace: str
    """Of `pid`, see processes.namespace."""
    token: str
    """Of this lease alone."""

    def is_gone(self) -> bool:
        """Whether its process is known to have ended: never of one on another machine."""
        return bool(self.namespace) and self.namespace == namespace() and not is_alive(self.process)

    @property
    def process(self) -> Process:
        return Process(self.pid, self.started)

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}, last heard of at {self.renewed}"

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode().ljust(_SIZE - 1) + b"\n"


def this_holder() -> LeaseHolder:
    now, here = _now(), find_process(os.getpid())
    job = next(filter(None, map(os.environ.get, _JOBS)), "")
    return LeaseHolder(
        host=socket.gethostname(),
        job=job,
        pid=os.getpid(),
        since=now,
        renewed=now,
        started=here.started if here else 0,
        namespace=namespace() if here else "",
        token=uuid.uuid4().hex,
    )


def holder_of(content: bytes) -> LeaseHolder | None:
    """None for what is no lease: torn, or written by something else."""
    try:
        tree = json.loads(content)
        holder = LeaseHolder(**tree)
        types = {name: type(value) for name, value in asdict(holder).items()}
    except (ValueError, TypeError):
        return None
    numbers = {"pid", "started"}
    return holder if all(kind is (int if name in numbers else str) for name, kind in types.items()) else None


def describe_lease(run_dir: Path) -> str:
    """Who holds a run, in words, as far as one look can tell."""
    content = _content(run_dir / LEASE)
    if content is None:
        return "nobody"
    holder = holder_of(content)
    if holder is None:
        return f"{LEASE} cannot be read"
    return f"{holder}{' (its process is gone)' if holder.is_gone() else ''}"


class Lease:
    """Holds a run's folder for this process. `clock`: monotonic, in seconds."""

    def __init__(self, path: Path, holder: LeaseHolder, file: int, clock: Clock = time.monotonic) -> None:
        self.holder = holder
        self._path, self._file, self._clock = path, file, clock
        self._lost = False
        self._renewed_at = clock()
        self._end = threading.Event()

    def keep(self) -> None:
        """Renews it from a thread of its own until the release or the end of this process."""
        threading.Thread(target=self._keep, name="lease", daemon=True).start()
        atexit.register(self.release)

    def _keep(self) -> None:
        while not self._end.wait(RENEW_S) and not self._lost:
            self.renew()

    def renew(self) -> None:
        """One renewal. Where another start holds the folder, this process is asked to stop."""
        late = self._clock() - self._renewed_at > STALE_S
        with contextlib.suppress(OSError):  # a disk that is full or away for a while: the next one may do it
            self.holder = replace(self.holder, renewed=_now())
            os.pwrite(self._file, self.holder.to_bytes(), 0)
            os.fsync(self._file)
            if _content(self._path) is None and not late:  # removed by hand
                new = _create(self._path, self.holder)
                if new is not None:
                    os.close(self._file)
                    self._file = new
            self._renewed_at = self._clock()
        if not self._end.is_set() and self.is_lost(late):
            owner = describe_lease(self._path.parent) if self._path.exists() else "nobody: its folder is gone"
            log.error("%s: taken over by %s; this start ends", self._path, owner)
            request_stop()

    def is_lost(self, late: bool = False) -> bool:
        """Whether the folder is another's. `late`: whether a lease that is not there counts as lost."""
        with contextlib.suppress(OSError):
            content = _content(self._path)
            theirs = holder_of(content) if content is not None else None
            self._lost |= (content is None and late) or (
                theirs is not None and theirs.token != self.holder.token
            )
        return self._lost

    def release(self) -> None:
        """Gives the folder free; without effect for a fork, or for what another has taken over."""
        if self.holder.pid != os.getpid() or self._end.is_set():
            return
        self._end.set()
        _held.pop(self._path, None)
        with contextlib.suppress(OSError):
            if not self.is_lost():
                self._path.unlink()
        os.close(self._file)
        atexit.unregister(self.release)


class _Watch:
    """Judges a lease by watching it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._content: bytes | None = None
        self._since = clock()

    def is_stale(self, content: bytes) -> bool:
        if content != self._content:
            self._content, self._since = content, self._clock()
        holder = holder_of(content)
        return (holder is not None and holder.is_gone()) or self._clock() - self._since >= STALE_S


_held: dict[Path, Lease] = {}


def acquire(
    run_dir: Path, clock: Clock = time.monotonic, pause: Callable[[float], object] = time.sleep
) -> Lease:
    """Takes the lease of a run, for which it waits up to WAIT_S; the caller keeps it renewed (Lease.keep).

    A lease that this process holds already is replaced. Raises UserError when another start still holds the run, and
    Stopped when a stop is asked for meanwhile.
    """
    path = run_dir.resolve() / LEASE
    if path in _held:
        _held[path].release()
    watch, began, told = _Watch(clock), clock(), False
    while True:
        content = _content(path)
        if content is None or watch.is_stale(content):
            if lease := _take(path, content, clock):
                _held[path] = lease
                return lease
        elif clock() - began >= WAIT_S:
            raise UserError(
                f"run_dir={run_dir} is held by another start: {describe_lease(run_dir)}. It still holds {LEASE}"
                f" after {WAIT_S:.0f} s: stop it, or choose another run_dir; one that has died is noticed by itself"
            )
        elif not told:
            told = True
            log.warning(
                "run_dir=%s is held by another start: %s; waits up to %d s for its end",
                *(run_dir, describe_lease(run_dir), WAIT_S),
            )
        check_stop()
        pause(LOOK_EVERY_S)


def _take(path: Path, stale: bytes | None, clock: Clock) -> Lease | None:
    """None when somebody else was faster. Of two that take a stale lease away, one sees that it took a new one."""
    holder = this_holder()
    if stale is not None:
        aside = path.with_name(f".{LEASE}.{holder.token}.stale")
        with contextlib.suppress(FileNotFoundError):
            path.rename(aside)
            is_the_stale_one = aside.read_bytes() == stale
            if not is_the_stale_one:
                with contextlib.suppress(OSError):
                    os.link(aside, path)
            aside.unlink()
            if not is_the_stale_one:
                return None
    file = _create(path, holder)
    return None if file is None else Lease(path, holder, file, clock)


def _create(path: Path, holder: LeaseHolder) -> int | None:
    """Makes the lease appear, whole and only where there is none; the open file, None when another's is there."""
    temporary = path.with_name(f".{LEASE}.{holder.token}.tmp")
    file = _write_new(temporary, holder)
    try:
        os.link(temporary, path)
    except OSError:
        # There, or a file system without hard links; also a network that has lost the answer to a link that was
        # made: so we look.
        if _content(path) is None:
            os.close(file)
            with contextlib.suppress(FileExistsError):
                file = _write_new(path, holder)
    finally:
        temporary.unlink(missing_ok=True)
    content = _content(path)
    owner = holder_of(content) if content is not None else None
    if owner is not None and owner.token == holder.token:
        return file
    with contextlib.suppress(OSError):
        os.close(file)
    return None


def _write_new(path: Path, holder: LeaseHolder) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    os.pwrite(file, holder.to_bytes(), 0)
    os.fsync(file)
    return file


def _content(path: Path) -> bytes | None:
    """None when it is not there. Raises OSError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(2 * _SIZE)
    except FileNotFoundError:
        return None


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
