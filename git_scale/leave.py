"""How a tool that ran under a process group ends."""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """Ends this process with `code`: exit handlers run and output is written, the interpreter is not torn down.

    gloo's threads outlive destroy_process_group for as long as anything holds a group, and DeepSpeed's modules do.
    One that lets go of its last tensor while the interpreter is torn down aborts the process: a run that ended
    well then leaves with code 134 (pytorch/pytorch#190489; seen here once in hundreds of runs).
    """
    atexit._run_exitfuncs()  # as multiprocessing ends its children
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
