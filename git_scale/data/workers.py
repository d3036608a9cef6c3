"""The processes of a loader: forked, fed through a socket each, and allowed to die or to hang.

    worker <- (number, items)          worker -> number, what was made of them

A batch comes back as bytes over the socket that its worker was born with: no file in TMPDIR, no memory in /dev/shm,
whose limits are others' (a path of 108 bytes, 64 MB in a container), and no thread that could fail unseen. The kernel
ends a worker with its parent.
"""

from __future__ import annotations

import ctypes
import io
import os
import pickle
import queue
import signal
import socket
import struct
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from git_scale.errors import UserError
from git_scale.stop import STOP_SIGNALS

PR_SET_PDEATHSIG = 1  # of prctl(2)


@dataclass(frozen=True)
class MadeBatch:
    """Carries a batch, with the number of its task."""

    number: int
    batch: Any


@dataclass(frozen=True)
class FailedBatch:
    """Carries what a worker says of an exception: bad samples are none, so it is a fault of the program."""

    sample: int
    """Number of the one it was at."""
    trace: str
    error: UserError | None = None
    """Or else what the user can mend."""


@dataclass(frozen=True)
class WorkerDeath:
    """Says that a worker is gone, and why."""

    cause: str


Arrivals = queue.SimpleQueue[tuple["LoaderWorker", MadeBatch | FailedBatch | WorkerDeath]]


class LoaderWorker:
    """Runs one process. `place` (int64 [2], shared) tells what it reads; answers come into `arrivals`."""

    def __init__(
        self, make: Callable[[Any], Any], place: np.ndarray, arrivals: Arrivals, finish: Callable[[Any], Any]
    ) -> None:
        """`make` turns a task into a batch there, `finish` looks it over here, beside the main thread."""
        self.place = place
        self._channel, theirs = socket.socketpair()
        parent = os.getpid()
        # fork: spawn would import torch in each worker (2.5 s of a core, 64 times on a node of 8 ranks)
        self._process = os.fork()
        if self._process == 0:
            _serve(make, place, theirs, parent)
        theirs.close()
        receiver = (_receive_all, (self, self._channel, self._process, arrivals, finish))
        threading.Thread(target=receiver[0], args=receiver[1], daemon=True).start()

    def ask(self, number: int, task: Any) -> None:
        with suppress(OSError):  # it has died: its receiver says so
            _send(self._channel, (number, task))

    def end(self) -> None:
        """At once; its receiver sees to what remains of it."""
        with suppress(ProcessLookupError):
            os.kill(self._process, signal.SIGKILL)
        with suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)


def _receive_all(
    worker: LoaderWorker,
    channel: socket.socket,
    process: int,
    arrivals: Arrivals,
    finish: Callable[[Any], Any],
) -> None:
    with channel, suppress(EOFError, OSError):
        while True:
            answer = _receive(channel)
            if isinstance(answer, MadeBatch):
                answer = MadeBatch(answer.number, finish(answer.batch))
            arrivals.put((worker, answer))
    _, status = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(status)
    arrivals.put((worker, WorkerDeath(f"exit code {code}" if code >= 0 else signal.Signals(-code).name)))


def _serve(make: Callable[[Any], Any], place: np.ndarray, channel: socket.socket, parent: int) -> NoReturn:
    """The life of a worker."""
    try:
        _end_with(parent)
        # The whole job step gets them: the parent still wants to save a checkpoint.
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        _forget_sockets(channel.fileno())
        torch.set_num_threads(1)
        while True:
            number, task = _receive(channel)
            try:
                answer: MadeBatch | FailedBatch = MadeBatch(number, make(task))
            except Exception as error:
                known = error if isinstance(error, UserError) else None
                answer = FailedBatch(int(place[0]), traceback.format_exc(), known)
            _send(channel, answer)
    except (EOFError, OSError):  # the parent has closed its end
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _end_with(parent: int) -> None:
    """Asks the kernel to kill this process when the one it was forked from ends, however that ends."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _forget_sockets(kept: int) -> None:
    """Lets go of every socket but one: peers notice the end of a rank when nobody holds its connections any more.

    Their numbers lead to /dev/null from then on, so that objects of the parent that still know them close nothing
    that was opened later.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for entry in list(Path("/proc/self/fd").iterdir()):
        with suppress(OSError):
            if int(entry.name) != kept and str(entry.readlink()).startswith("socket:"):
                os.dup2(null, int(entry.name), inheritable=False)


class _Pickler(pickle.Pickler):
    """Tensors as arrays, whose data pickle hands out beside its own bytes."""

    def reducer_override(self, item: Any) -> Any:
        return (torch.from_numpy, (item.numpy(),)) if isinstance(item, Tensor) else NotImplemented


def _send(channel: socket.socket, message: Any) -> None:
    head, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    _Pickler(head, protocol=5, buffer_callback=buffers.append).dump(message)
    parts: list[bytes | memoryview] = [head.getvalue(), *(buffer.raw() for buffer in buffers)]
    sizes = [memoryview(part).nbytes for part in parts]
    channel.sendall(struct.pack(f"<{1 + len(parts)}Q", len(parts), *sizes))
    for part in parts:
        channel.sendall(part)


def _receive(channel: socket.socket) -> Any:
    """Raises EOFError when the other end is closed."""
    (count,) = struct.unpack("<Q", _read(channel, 8))
    sizes = struct.unpack(f"<{count}Q", _read(channel, 8 * count))
    head, *buffers = [_read(channel, size) for size in sizes]
    return pickle.loads(head, buffers=buffers)  # of a fork of this process: nothing from outside


def _read(channel: socket.socket, size: int) -> memoryview:
    view, at = np.empty(size, np.uint8).data, 0  # not filled with zeros first
    while at < size:
        got = channel.recv_into(view[at:], size - at, socket.MSG_WAITALL)
        if not got:
            raise EOFError
        at += got
    return view
