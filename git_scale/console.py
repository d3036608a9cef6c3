"""How every command line begins and ends: what it prints to, how it says what went wrong, and its exit code.

    @tool
    def main(argv: list[str] | None = None) -> int: ...

Also the types of arguments: numbers within their bounds and paths as a user writes them.
"""

from __future__ import annotations

import argparse
import errno
import functools
import io
import math
import os
import select
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, TypeAlias, overload

from git_scale.errors import PeerFailedError, UserError
from git_scale.paths import expanded, problem_of_file, problem_of_folder
from git_scale.stop import Stopped

PEER_FAILED = 1
USAGE_ERROR = 2
INTERRUPTED = 130  # as shells report Ctrl-C
READER_GONE = 141  # as of a program that SIGPIPE ends
FULL = (errno.ENOSPC, errno.EDQUOT)
ROOM = "; make room there, or write elsewhere"
STOPPED = "stopped before the end: the same command starts again"

Main: TypeAlias = Callable[[list[str] | None], int]
Tool: TypeAlias = Callable[..., int]
"""`argv` may be left out: the process's own."""


@overload
def tool(main: Main) -> Tool: ...
@overload
def tool(*, speaks: Callable[[], bool]) -> Callable[[Main], Tool]: ...
def tool(main: Main | None = None, *, speaks: Callable[[], bool] = lambda: True) -> Any:
    """Makes a tool of `main`: a user's mistake is one message on stderr and code 2, Ctrl-C is code 130.

    A reader of stdout that leaves (`| head`) has what it wanted: code 0. One of stderr, too, that leaves before the
    work is done makes it 141. What the terminal's encoding cannot show appears as an escape. Under a launcher all
    ranks raise the same UserError: `speaks` says whether this one prints it.
    """
    if main is None:
        return functools.partial(tool, speaks=speaks)

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        open_what_is_closed()
        escape_what_cannot_be_shown()
        try:
            try:
                code = main(argv)
            except SystemExit:  # of argparse: usage or help
                _flush()
                raise
            except UserError as error:
                code = _failed(str(error)) if speaks() else USAGE_ERROR
            except PeerFailedError:
                code = PEER_FAILED
            except Stopped:
                code = _failed(STOPPED, INTERRUPTED) if speaks() else INTERRUPTED
            except KeyboardInterrupt:
                code = INTERRUPTED
            except OSError as error:
                if isinstance(error, BrokenPipeError) or not _is_of_a_file(error):
                    raise
                code = _flush() or _failed(_explain(error))
        except BrokenPipeError:
            if not (unread := _print_nowhere()):
                raise  # of another pipe
            return 0 if unread == [sys.stdout] else READER_GONE
        try:
            return _flush() or code
        except BrokenPipeError:
            _print_nowhere()
            return code

    return run


def open_what_is_closed() -> None:
    """A stream that was closed (`>&-`) goes nowhere, and its number to no file that is opened later."""
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(spare, True)
    os.close(spare)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123, SIM115 - open to the end of the process
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123, SIM115


def escape_what_cannot_be_shown() -> None:
    """Names of files need not be text, and a terminal's encoding need not hold every letter: both print escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def whole(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """Of argparse: a whole number of at least `minimum` and at most `maximum`."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{text}: at least {minimum} is needed")
        if maximum is not None and value > maximum:
            raise argparse.ArgumentTypeError(f"{text}: at most {maximum} is possible")
        return value

    return number


def positive(text: str) -> float:
    """Of argparse: a finite number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return value


def share(text: str) -> float:
    """Of argparse: a number within (0, 1]."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share within (0, 1]")
    return value


def path(text: str) -> Path:
    """Of argparse: a path, with `~` and `$NAME` in the places of what they stand for."""
    try:
        return Path(expanded(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Adds the option by which a tool takes a checkpoint's moving average in the place of its weights."""
    parser.add_argument(
        "--weights",
        choices=("trained", "ema"),
        default="trained",
        help="ema: the moving average that a run with optimizer.ema has kept (%(default)s)",
    )


def output_file(text: str) -> Path:
    """Of argparse: a path that a file can be written at, which is tried before the work."""
    return _writable(path(text), problem_of_file)


def output_folder(text: str) -> Path:
    """Of argparse: a path of a folder that can be written in, or made."""
    return _writable(path(text), problem_of_folder)


def _writable(place: Path, problem_of: Callable[[Path], str]) -> Path:
    if problem := problem_of(place):
        raise argparse.ArgumentTypeError(f"{place}: {problem}")
    return place


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def _failed(message: str, code: int = USAGE_ERROR) -> int:
    print(message, file=sys.stderr)  # noqa: T201
    return code


def _is_of_a_file(error: OSError) -> bool:
    """Not of a socket or a process, whose failures need their traceback."""
    return error.filename is not None or error.errno in FULL


def _explain(error: OSError) -> str:
    remedy = ROOM if error.errno in FULL else ""
    place = error.filename or ("stdout" if _is_on_a_disk(sys.stdout) else None)  # whose errors name no file
    return f"{'' if place is None else f'{place}: '}{error.strerror}{remedy}"


def _is_on_a_disk(stream: TextIO) -> bool:
    """Or on /dev/full: neither a terminal nor a pipe, nor nowhere."""
    try:
        found, nowhere = os.fstat(stream.fileno()), os.stat(os.devnull)  # noqa: PTH116 - as fstat gives it
        is_device = stat.S_ISCHR(found.st_mode) and not stream.isatty() and found.st_rdev != nowhere.st_rdev
    except (OSError, ValueError):  # no file behind it, as in tests
        return False
    return stat.S_ISREG(found.st_mode) or is_device


def _flush() -> int:
    """Writes out what has been printed; returns the code that a failure of it calls for."""
    try:
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        raise
    except OSError as error:  # `> file` on a full disk
        _redirect(sys.stdout)
        error.filename = "stdout"
        return _failed(_explain(error))


def _print_nowhere() -> list[TextIO]:
    """The streams that nobody reads, which the interpreter flushes again at its end and is not to complain of."""
    unread = [stream for stream in (sys.stdout, sys.stderr) if _is_broken(stream)]
    for stream in unread:
        _redirect(stream)
    return unread


def _redirect(stream: TextIO) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _is_broken(stream: TextIO) -> bool:
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):  # no file behind it, as in tests
        return False
    return bool(poll.poll(0))  # POLLERR: the other end is closed
