"""A run's folder has one owner: by injected clocks, and by processes that are and that are gone."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from git_scale.errors import UserError
from git_scale.stop import Stopped, StopRequest, request_stop
from git_scale.training import lease
from git_scale.training.lease import (
    LEASE,
    STALE_S,
    WAIT_S,
    Lease,
    LeaseHolder,
    acquire,
    describe_lease,
    this_holder,
)


class Clock:
    """Time that passes by pausing; `meanwhile` happens in each pause."""

    def __init__(self, meanwhile: Callable[[float], object] = lambda now: None) -> None:
        self.now = 1000.0
        self.meanwhile = meanwhile

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile(self.now - 1000)


def take(folder: Path, clock: Clock | None = None) -> Lease:
    clock = clock or Clock()
    return acquire(folder, clock, clock.pause)


def elsewhere(**changes: object) -> LeaseHolder:
    """A holder on another machine, of which nothing is known but its lease."""
    return dataclasses.replace(this_holder(), host="n7", job="42", namespace="another boot", **changes)


def lay(folder: Path, holder: LeaseHolder) -> None:
    (folder / LEASE).write_bytes(holder.to_bytes())


def content(folder: Path) -> dict[str, object]:
    return json.loads((folder / LEASE).read_text())


def test_the_owner_is_named_and_its_lease_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    held = take(tmp_path)
    tree = content(tmp_path)
    assert (tree["pid"], tree["job"], tree["host"]) == (os.getpid(), "77", os.uname().nodename)
    assert f"process {os.getpid()} on" in describe_lease(tmp_path) and "job 77" in describe_lease(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / LEASE]
    held.release()
    assert list(tmp_path.iterdir()) == []
    assert describe_lease(tmp_path) == "nobody"
    held.release()  # again, as at the exit


def test_a_second_start_waits_says_for_whom_and_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = elsewhere()
    lay(tmp_path, theirs)
    clock = Clock(lambda now: lay(tmp_path, dataclasses.replace(theirs, renewed=f"{now}")))
    with pytest.raises(
        UserError, match=r"held by another start: process \d+ on n7, job 42, since 20.*stop it"
    ):
        take(tmp_path, clock)
    assert clock.now - 1000 == WAIT_S
    assert [record.message.partition(";")[0].count("n7, job 42, since") for record in caplog.records] == [1]
    assert content(tmp_path)["token"] == theirs.token


def test_it_goes_on_where_the_first_ends_meanwhile(tmp_path: Path) -> None:
    theirs = elsewhere()
    lay(tmp_path, theirs)
    clock = Clock(lambda now: (tmp_path / LEASE).unlink() if now == 30 else None)
    take(tmp_path, clock).release()
    assert clock.now - 1000 == 30


@pytest.mark.parametrize(
    "left", [elsewhere().to_bytes(), b"", b'{"host": "n', b'{"pid": "x"}', b"[]", b"\xff\xfe"]
)
def test_what_does_not_change_is_stale_by_the_readers_own_clock(tmp_path: Path, left: bytes) -> None:
    """A crashed owner on another machine, whatever its clock; a torn file; garbage."""
    (tmp_path / LEASE).write_bytes(left)
    clock = Clock()
    take(tmp_path, clock).release()
    assert clock.now - 1000 == STALE_S


def test_a_lease_that_changes_late_is_watched_from_there(tmp_path: Path) -> None:
    theirs = elsewhere()
    lay(tmp_path, theirs)
    clock = Clock(lambda now: lay(tmp_path, dataclasses.replace(theirs, renewed="b")) if now == 50 else None)
    take(tmp_path, clock).release()
    assert clock.now - 1000 == 50 + STALE_S


def a_dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_on_the_same_machine_a_process_that_is_gone_holds_nothing(tmp_path: Path) -> None:
    clock = Clock()
    lay(tmp_path, dataclasses.replace(this_holder(), pid=a_dead_process()))
    assert "its process is gone" in describe_lease(tmp_path)
    take(tmp_path, clock).release()
    # its number was given again: another process of this number, started at another time
    lay(tmp_path, dataclasses.replace(this_holder(), pid=os.getppid(), started=1))
    take(tmp_path, clock).release()
    assert clock.now == 1000.0


def test_a_process_that_nobody_has_waited_for_is_gone_too(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    here = lease.find_process(child.pid)
    assert here is not None
    lay(tmp_path, dataclasses.replace(this_holder(), pid=child.pid, started=here.started))
    assert "gone" not in describe_lease(tmp_path)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    assert "its process is gone" in describe_lease(tmp_path)
    child.wait()


def test_a_living_process_of_this_machine_holds_it(tmp_path: Path) -> None:
    parent = lease.find_process(os.getppid())
    assert parent is not None
    theirs = dataclasses.replace(this_holder(), pid=parent.pid, started=parent.started)
    lay(tmp_path, theirs)
    with pytest.raises(UserError):
        take(tmp_path, Clock(lambda now: lay(tmp_path, dataclasses.replace(theirs, renewed=f"{now}"))))


def test_a_stop_is_heard_while_it_waits(tmp_path: Path) -> None:
    lay(tmp_path, elsewhere())
    clock = Clock(lambda now: request_stop() if now == 5 else None)
    with StopRequest(), pytest.raises(Stopped):
        take(tmp_path, clock)
    assert clock.now - 1000 <= 6


def test_renewing_changes_the_content_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = take(tmp_path)
    before, place = content(tmp_path), (tmp_path / LEASE).stat().st_ino
    monkeypatch.setattr(lease, "_now", lambda: "later")
    held.renew()
    assert content(tmp_path) == {**before, "renewed": "later"}
    assert (tmp_path / LEASE).stat().st_ino == place
    held.release()


def test_an_owner_whose_lease_was_taken_over_stops_and_leaves_it_alone(tmp_path: Path) -> None:
    held = take(tmp_path)
    (tmp_path / LEASE).unlink()
    theirs = elsewhere()
    lay(tmp_path, theirs)
    with StopRequest() as stop:
        held.renew()
        assert stop and held.is_lost()
    assert content(tmp_path)["token"] == theirs.token
    held.release()
    assert content(tmp_path)["token"] == theirs.token


def test_a_lease_that_was_removed_by_hand_is_made_again_but_not_by_one_that_was_asleep(
    tmp_path: Path,
) -> None:
    clock = Clock()
    held = take(tmp_path, clock)
    token = content(tmp_path)["token"]
    (tmp_path / LEASE).unlink()
    with StopRequest() as stop:
        held.renew()
        assert content(tmp_path)["token"] == token and not stop
        held.renew()
        assert content(tmp_path)["token"] == token
        (tmp_path / LEASE).unlink()  # by a start that took it over meanwhile, and has ended
        clock.now += STALE_S + 1
        held.renew()
        assert stop and held.is_lost()
    assert not (tmp_path / LEASE).exists()
    held.release()


def test_of_two_that_find_it_stale_one_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one is slow: between its look and its move the first has taken the lease."""
    stale = elsewhere().to_bytes()
    (tmp_path / LEASE).write_bytes(stale)
    first = lease._take(tmp_path / LEASE, stale, Clock())
    assert first is not None
    assert lease._take(tmp_path / LEASE, stale, Clock()) is None
    assert content(tmp_path)["token"] == first.holder.token
    first.renew()
    assert not first.is_lost()
    first.release()
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    held = take(tmp_path)
    assert lease._take(tmp_path / LEASE, None, Clock()) is None
    held.renew()
    assert not held.is_lost()
    held.release()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_loses_no_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = take(tmp_path)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with StopRequest() as stop:
        held.renew()
        assert not stop and not held.is_lost()
    held.release()


OWNER = """
import sys
from pathlib import Path
from git_scale.training.lease import acquire
acquire(Path(sys.argv[1])).keep()
print("held", flush=True)
{then}
"""


@pytest.mark.parametrize("then", ["input()", "sys.exit(3)"])
def test_a_process_that_is_killed_or_ends_leaves_it_free(tmp_path: Path, then: str) -> None:
    command = [sys.executable, "-c", OWNER.format(then=then), str(tmp_path)]
    owner = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None and owner.stdout.readline() == "held\n"
    if then == "input()":
        assert content(tmp_path)["pid"] == owner.pid
        owner.send_signal(signal.SIGKILL)
    owner.wait(60)
    assert (tmp_path / LEASE).exists() == (then == "input()")
    clock = Clock()
    take(tmp_path, clock).release()
    assert clock.now == 1000.0
