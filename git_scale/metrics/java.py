"""A Java program that scores texts, for as long as it takes and no longer.

    with java_program(["-jar", "meteor-1.5.jar", "-", "-", "-stdio"], seconds=600) as program:
        program.stdin.write(b"...")

Nothing of it outlives the block: it is killed when its time is over, and when the block is left in any way. It reads
and writes UTF-8 with decimal points, whatever the locale.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_LOCALE = ("-Dfile.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US")
_SECONDS_TO_END = 10
"""Left to a program that has said everything and is to end by itself."""


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
def java_program(arguments: Sequence[str], seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    """The running program with pipes as stdin and stdout. Raises JavaError for all that goes wrong within the block.

    A ValueError or EOFError of the block says that an answer was not what was asked for.
    """
    with tempfile.TemporaryFile() as complaints:
        program = subprocess.Popen(
            [shutil.which("java") or "java", *_LOCALE, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            start_new_session=True,  # what it starts itself is killed with it
        )
        is_late = threading.Event()

        def end_late() -> None:
            is_late.set()
            _kill(program)

        timer = threading.Timer(seconds, end_late)
        timer.daemon = True
        timer.start()
        try:
            yield program
        except (OSError, ValueError, EOFError) as error:
            _end(program)
            if is_late.is_set():
                raise JavaError(f"java had not answered after {seconds:g} s") from None
            raise JavaError(_reason(program, error, complaints)) from None
        finally:
            timer.cancel()
            _end(program, _SECONDS_TO_END)


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


def _end(program: subprocess.Popen[bytes], seconds: float = 1) -> None:
    assert program.stdin is not None and program.stdout is not None, "pipes"
    with suppress(OSError):
        program.stdin.close()  # at which it ends
    with suppress(subprocess.TimeoutExpired):
        program.wait(seconds)
    _kill(program)
    program.wait()
    program.stdout.close()


def _kill(program: subprocess.Popen[bytes]) -> None:
    if program.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
