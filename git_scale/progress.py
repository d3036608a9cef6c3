"""A bar and remarks beside the work, which goes on when nobody hears them: a full disk, a pipe that closed."""

from __future__ import annotations

import atexit
import errno
import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO, TypeVar

from tqdm import tqdm  # deepspeed and timm both bring it

Item = TypeVar("Item")

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.ESTALE}


def remark(text: str) -> None:
    """Writes a line to standard error."""
    CalmStream(sys.stderr).write(text + "\n")


def progress(items: Iterable[Item], total: int | None, unit: str, **options: Any) -> Iterable[Item]:
    """`items`, with a bar on standard error that tells how many have passed. `options` are tqdm's."""
    return bar(items, total=total, unit=unit, **{"mininterval": 2, **options})


def bar(*items: Iterable[Item], **options: Any) -> Any:
    """tqdm's bar on standard error, without what a full disk makes of it."""
    return tqdm(*items, file=CalmStream(sys.stderr), **options)


class CalmStream:
    """A text stream whose writes never raise: what a full disk does not take is dropped, all once nobody reads it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError) as error:  # a full disk, a pipe that closed; a stream that is closed
            if isinstance(error, OSError) and error.errno in FULL:  # there may be space again
                atexit.register(self._flush_at_exit)
            else:
                self._silence()
        return len(text)

    def flush(self) -> None:
        """Every write has been flushed."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _flush_at_exit(self) -> None:
        """Gives up what still waits for a full disk when the process ends."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._silence()

    def _silence(self) -> None:
        """Lets the stream end at the null device: the interpreter flushes it once more when it exits."""
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
        except (OSError, ValueError):  # no file beneath
            return
