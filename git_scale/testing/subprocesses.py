"""Programs that a test starts, talks to and ends."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """The running program, which does not outlive the block. `options`: those of Popen.

    Popen's own block waits for it: for ever, where a test fails before it has ended the program.
    """
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()
