"""A bar and remarks beside the work, which goes on when nobody hears them: a full disk, a pipe that closed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO, TypeVar

from tqdm import tqdm  # deepspeed and timm both bring it

Item = TypeVar("Item")


def remark(text: str) -> None:
    """Writes a line to standard error."""
    CalmStream(sys.stderr).write(text + "\n")


def progress(items: Iterable[Item], total: int | None, unit: str) -> Iterable[Item]:
    """`items`, with a bar on standard error that tells how many have passed."""
    return tqdm(items, total=total, unit=unit, mininterval=2, file=CalmStream(sys.stderr))


class CalmStream:
    """A text stream whose writes never raise: what cannot be written is dropped, from then on all of it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # a full disk, a pipe that closed; a stream that is closed
            self._silence()
        return len(text)

    def flush(self) -> None:
        """Every write has been flushed."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _silence(self) -> None:
        """Lets the stream end at the null device: the interpreter flushes it once more when it exits."""
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
        except (OSError, ValueError):  # no file beneath
            return
