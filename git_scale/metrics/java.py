"""A Java program that scores texts, for as long as it takes and no longer.

    with java_program("METEOR", ["-jar", "meteor-1.5.jar", "-", "-", "-stdio"], seconds=600) as program:
        program.stdin.write(b"...")

Nothing of it outlives the block: it is killed when its time is over, when this process is asked to stop, and when
the block is left in any way. What it started is known by a variable of the environment, for a `java` that is a
wrapper may put the program into a session of its own, or end before it. It reads and writes UTF-8 with decimal
points, whatever the locale.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TypeVar

from git_scale.stop import check_stop, stop_requested

log = logging.getLogger(__name__)
T = TypeVar("T")

_LOCALE = ("-Dfile.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US")
_SECONDS_TO_END = 2
"""Left to a program that has said everything and is to end by itself."""
_ROUND_S = 0.1
"""How often a program that is awaited is looked at."""
_VARIABLE = "GIT_SCALE_PROGRAM"
_KILL_ROUNDS, _KILL_ROUND_S = 100, 0.01
"""For what is killed to end, and for what it started meanwhile to be found."""


class JavaError(Exception):
    """A program that did not do its work; the text says why."""


def jar_of(package: str, *names: str) -> Path:
    """The first of these files in pycocoevalcap's folder. Raises JavaError where Java or one of them is missing."""
    if shutil.which("java") is None:
        raise JavaError("there is no java on PATH")
    import pycocoevalcap  # type: ignore[import-untyped]

    jars = [Path(folder, package, name) for folder in pycocoevalcap.__path__ for name in names]
    if missing := [str(jar) for jar in jars if not jar.is_file()]:
        raise JavaError(f"{missing[0]} is not there")
    return jars[0]


@contextmanager
def java_program(name: str, arguments: Sequence[str], seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    """The running program with pipes as stdin and stdout; `name` of what it works out, for the log.

    A ValueError or EOFError of the block says that an answer was not what was asked for. Raises JavaError for all
    that goes wrong within the block, and for a program that cannot be started; Stopped once a stop is asked for.
    """
    check_stop()
    with tempfile.TemporaryFile() as complaints:
        mark = uuid.uuid4().hex
        program = _start(arguments, complaints, mark)
        log.info("%s: waiting for java, %g s at the most", name, seconds)
        is_over, is_late = threading.Event(), threading.Event()

        def watch() -> None:
            end = time.monotonic() + seconds
            while not is_over.wait(max(0, min(_ROUND_S, end - time.monotonic()))):
                if time.monotonic() >= end:
                    is_late.set()
                if is_late.is_set() or stop_requested():
                    _kill(program, mark)  # at which the block reads the end of its pipe
                    return

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield program
        except (OSError, ValueError, EOFError) as error:
            _end(program, mark)
            check_stop()
            if is_late.is_set():
                raise JavaError(f"java had not answered after {seconds:g} s") from None
            raise JavaError(_reason(program, error, complaints)) from None
        finally:
            is_over.set()
            _end(program, mark, _SECONDS_TO_END)


def unless_java_fails(name: str, compute: Callable[[], T]) -> T | None:
    """What `compute` gives; None, and a line in the log, where it raises JavaError."""
    try:
        return compute()
    except JavaError as error:
        log.warning("%s is left out: %s", name, error)
        return None


def _start(arguments: Sequence[str], complaints: IO[bytes], mark: str) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [shutil.which("java") or "java", *_LOCALE, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            start_new_session=True,  # what it starts itself is killed with it
            env={**os.environ, _VARIABLE: mark},
        )
    except OSError as error:  # of another architecture, say
        raise JavaError(f"{error.filename} cannot be started: {error.strerror}") from None


def read_line(program: subprocess.Popen[bytes]) -> str:
    """The next line of what it says. Raises EOFError where it has ended."""
    assert program.stdout is not None, "a pipe"
    line = program.stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError("it ended before its last answer")
    return line.decode("utf-8", "replace").strip()


def _reason(program: subprocess.Popen[bytes], error: Exception, complaints: IO[bytes]) -> str:
    complaints.seek(0)
    said = complaints.read()[-400:].decode("utf-8", "replace").strip()
    code = f"java ended with code {program.returncode}" if program.returncode > 0 else "java failed"
    return f"{code}: {said or error}"


def _end(program: subprocess.Popen[bytes], mark: str, seconds: float = 1) -> None:
    assert program.stdin is not None and program.stdout is not None, "pipes"
    with suppress(OSError):
        program.stdin.close()  # at which it ends
    with suppress(subprocess.TimeoutExpired):
        program.wait(seconds)
    _kill(program, mark)
    program.wait()
    program.stdout.close()


def _kill(program: subprocess.Popen[bytes], mark: str) -> None:
    if program.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
    for _ in range(_KILL_ROUNDS):
        if not (left := _marked(mark)):
            return
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(_KILL_ROUND_S)


def _marked(mark: str) -> list[int]:
    """The processes of this user that have the mark in their environment; none where there is no /proc."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # another user's, or one that has ended
            if f"{_VARIABLE}={mark}".encode() in file.read_bytes().split(b"\0"):
                found.append(int(file.parent.name))
    return found
