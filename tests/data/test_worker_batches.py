"""Loader workers that die, hang or are left alone: the order of the batches stays, and no wait is without an end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from git_scale.data import worker_batches
from git_scale.data.quarantine import FILE, Quarantine
from git_scale.data.reader import WatchedReader
from git_scale.data.worker_batches import BatchSource, WorkerBatches, batches_in_process
from git_scale.errors import ConfigError, DataError, LoaderError
from git_scale.parallel.topology import free_port
from git_scale.stop import Stopped, StopRequest
from git_scale.testing.subprocesses import started

Act = Callable[[int], None]


class Shards:
    """Samples whose reading is an action."""

    def __init__(self, act: Act = lambda number: None) -> None:
        self.act = act

    def key(self, number: int) -> str:
        return f"s.tar:{number}"

    def read(self, number: int) -> int:
        self.act(number)
        return number


def source_of(act: Act, quarantine: Quarantine | None = None, timeout_s: float = 60) -> BatchSource:
    reader = WatchedReader(Shards(act), quarantine)  # type: ignore[arg-type]

    def sample(number: int) -> int:
        try:
            return int(reader.read(number))  # type: ignore[call-overload]
        except DataError:
            return -1

    def make(numbers: list[int]) -> Any:
        batch = {"numbers": torch.tensor([sample(number) for number in numbers]), "process": os.getpid()}
        reader.rest()
        return batch

    return BatchSource(reader, make, lambda batch: batch, timeout_s)


def tasks(count: int) -> list[list[int]]:
    return [[2 * task, 2 * task + 1] for task in range(count)]


def numbers(made: Iterator[Any]) -> list[int]:
    return [int(number) for batch in made for number in batch["numbers"]]


def die(number: int, by: signal.Signals = signal.SIGKILL) -> None:
    os.kill(os.getpid(), by)
    time.sleep(60)


def hang(number: int) -> None:
    threading.Event().wait()


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_come_in_the_order_of_their_tasks(workers: int) -> None:
    made = WorkerBatches(source_of(lambda number: time.sleep(0.002 * (number % 3))), tasks(40), workers)
    found = list(made)
    assert numbers(iter(found)) == list(range(80))
    assert len({batch["process"] for batch in found}) == workers
    assert found[0]["numbers"].dtype == torch.int64


def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost() -> None:
    made = WorkerBatches(source_of(lambda number: None), tasks(60), 2)
    found = [next(made) for _ in range(5)]
    os.kill(found[0]["process"], signal.SIGKILL)
    found += list(made)
    assert numbers(iter(found)) == list(range(120))
    assert len({batch["process"] for batch in found}) == 3


@pytest.mark.parametrize("by", [signal.SIGSEGV, signal.SIGKILL])
def test_a_sample_that_kills_its_reader_is_named_and_quarantined(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, by: signal.Signals
) -> None:
    path = tmp_path / FILE

    def act(number: int) -> None:
        if number == 13:
            die(number, by)

    made = WorkerBatches(source_of(act, Quarantine(path, "train")), tasks(20), 2)
    assert numbers(made) == [*range(13), -1, *range(14, 40)], "in its place, and nothing else moved"
    said = [record.message for record in caplog.records]
    assert len(said) == 2 and all(f"died ({by.name}) while it read s.tar:13" in line for line in said)
    assert said[1].endswith("it is not read again; another one takes its place")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["sample"], line["data"], line["cause"]) for line in lines] == [
        ("s.tar:13", "train", by.name)
    ] * 2
    # the next start reads it from there
    again = WorkerBatches(source_of(act, Quarantine(path, "train")), tasks(20), 2)
    assert numbers(again)[13] == -1 and len(caplog.records) == 2
    assert not Quarantine(path, "heldout") and Quarantine(path, "train").held == ["s.tar:13"]


def test_one_death_alone_quarantines_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "died"

    def act(number: int) -> None:
        if number == 3 and not mark.exists():
            mark.touch()
            die(number)

    made = WorkerBatches(source_of(act, Quarantine(tmp_path / FILE, "train")), tasks(4), 1)
    assert numbers(made) == list(range(8))
    assert not Quarantine(tmp_path / FILE, "train")


def test_a_quarantine_with_a_torn_line_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quarantine = Quarantine(tmp_path / FILE, "train")
    quarantine.record("s.tar:a", "SIGKILL")
    with (tmp_path / FILE).open("a") as file:
        file.write('{"data": "train", "sam\n[]\n')
    Quarantine(tmp_path / FILE, "train").record("s.tar:a", "SIGKILL")  # another rank
    quarantine.record("s.tar:b", "SIGSEGV")
    assert quarantine.held == ["s.tar:a"] and "s.tar:a" in quarantine and "s.tar:b" not in quarantine
    assert "no record is passed over" in caplog.text


def test_workers_that_keep_dying_end_the_run_with_the_remedy() -> None:
    made = WorkerBatches(source_of(die), [[number] for number in range(40)], 2)
    with pytest.raises(LoaderError, match=r"SIGKILL.*the 10th within 1000 batches.*set data.workers lower"):
        list(made)


def test_an_exception_in_a_worker_is_one_error_with_its_sample() -> None:
    def act(number: int) -> None:
        if number == 5:
            raise ZeroDivisionError("a fault of the program")

    made = WorkerBatches(source_of(act), tasks(9), 2)
    with pytest.raises(
        RuntimeError, match=r"(?s)failed at s.tar:5:.*ZeroDivisionError: a fault of the program"
    ):
        list(made)


def test_what_the_user_can_mend_comes_out_of_a_worker_as_it_is() -> None:
    def act(number: int) -> None:
        if number == 5:
            raise ConfigError(["data.texts_per_image=1 is too few"])

    with pytest.raises(ConfigError, match=r"data\.texts_per_image=1 is too few"):
        list(WorkerBatches(source_of(act), tasks(9), 2))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_read_that_hangs_hears_a_stop(workers: int) -> None:
    source = source_of(lambda number: hang(number) if number == 4 else None)
    made = WorkerBatches(source, tasks(9), workers) if workers else batches_in_process(source, tasks(9))
    with StopRequest():
        assert numbers(islice(made, 2)) == [0, 1, 2, 3]
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            next(made)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_read_that_hangs_too_long_names_its_sample(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_batches, "POLL_S", 0.05)
    for start in range(3):
        quarantine = Quarantine(tmp_path / FILE, "train")
        source = source_of(lambda number: hang(number) if number == 4 else None, quarantine, timeout_s=0.2)
        made = WorkerBatches(source, tasks(4), workers) if workers else batches_in_process(source, tasks(4))
        if start == 2:
            assert numbers(made) == [0, 1, 2, 3, -1, 5, 6, 7], "after two starts that it has ended"
            break
        assert numbers(islice(made, 2)) == [0, 1, 2, 3]
        with pytest.raises(Stopped, match=r"s.tar:4: has been read for \d+ s \(data.sample_timeout_s=0.2\)"):
            next(made)


def test_a_worker_holds_no_socket_of_its_parent() -> None:
    """A survivor learns of a dead rank when its connections close; forked workers held them open."""
    mine, peer = socket.socketpair()
    listening = socket.create_server(("127.0.0.1", free_port()))  # that no outgoing connection takes
    made = WorkerBatches(source_of(lambda number: None), tasks(90), 2)
    workers = {next(made)["process"] for _ in range(2)}
    assert len(workers) == 2, "both have begun, and so have let go of what they were forked with"
    for process in workers:
        links = [str(entry.readlink()) for entry in Path(f"/proc/{process}/fd").iterdir()]
        assert len([link for link in links if link.startswith("socket:")]) == 1
    mine.close()
    peer.settimeout(10)
    assert peer.recv(1) == b"", "nobody else holds its other end"
    port = listening.getsockname()[1]
    listening.close()
    socket.create_server(("127.0.0.1", port)).close()
    assert numbers(made)[-1] == 179


def shared_memory(process: int) -> set[str]:
    lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in lines if "/dev/shm" in line}


def test_batches_need_neither_tmpdir_nor_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("x" * 200)))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = set(Path("/dev/shm").iterdir())
    made = WorkerBatches(source_of(lambda number: None), tasks(90), 2)
    process = next(made)["process"]
    assert shared_memory(process) <= shared_memory(os.getpid()), "a fork inherits what its parent holds"
    assert numbers(made)[-1] == 179
    assert {
        path for path in set(Path("/dev/shm").iterdir()) - before if str(os.getpid()) in path.name
    } == set()


def test_workers_end_when_their_batches_are_let_go() -> None:
    made = WorkerBatches(source_of(lambda number: None), tasks(90), 2)
    processes = [psutil.Process(next(made)["process"]) for _ in range(2)]
    del made
    gone, alive = psutil.wait_procs(processes, timeout=30)
    assert len(gone) == 2 and not alive


PROGRAM = """
import signal, sys, time
sys.path.insert(0, sys.argv[1])
from test_worker_batches import WorkerBatches, hang, source_of, tasks
from git_scale.stop import StopRequest, stop_requested
made = WorkerBatches(source_of(lambda number: hang(number) if number == 4 else None), tasks(9), 2)
with StopRequest():
    print(*{next(made)["process"] for _ in range(2)}, flush=True)
    while not stop_requested():  # a signal before signal.pause() would be lost on it
        time.sleep(0.05)
    print("heard", flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("signals", [[signal.SIGKILL], [signal.SIGTERM, signal.SIGTERM]])
def test_workers_end_with_their_parent_whatever_ends_it(signals: list[signal.Signals]) -> None:
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent)]
    with started(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [psutil.Process(int(process)) for process in parent.stdout.readline().split()]
        assert len(workers) == 2
        parent.send_signal(signals[0])
        if signals[1:]:
            assert parent.stdout.readline() == "heard\n"
            parent.send_signal(signals[1])
        parent.wait(60)
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
