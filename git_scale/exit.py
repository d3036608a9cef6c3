"""Ends the process of a tool that ran under a process group, without tearing its interpreter down."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import git_scale.processes  # noqa: F401 - tools import this among the first: it takes note of their parent
from git_scale.stop import StopRequest

LIMIT_S = 60.0  # for exit handlers and the last output


def run_and_exit(main: Callable[[], int]) -> NoReturn:
    """Runs a tool and ends this process with its code: exit handlers run and output is written, the interpreter is
    not torn down.

    gloo's threads outlive destroy_process_group for as long as anything holds a group, and DeepSpeed's modules do.
    One that lets go of its last tensor while the interpreter is torn down aborts the process: a run that ended
    well then leaves with code 134 (pytorch/pytorch#190489; seen here once in hundreds of runs).

    A stop signal that comes behind the tool's own end changes nothing: the code stays the tool's.
    """
    with StopRequest():
        code = main()
        with exit_within(LIMIT_S, code):
            atexit._run_exitfuncs()  # as multiprocessing ends its children
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


@contextmanager
def exit_within(seconds: float, code: int) -> Iterator[None]:
    """Ends this process with `code` when the block lasts longer than `seconds`, whatever it waits for."""
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()
    yield
    timer.cancel()
