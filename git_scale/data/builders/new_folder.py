"""A folder that takes its place when it is complete, and not before."""

from __future__ import annotations

import glob
import logging
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from git_scale.data.listing import PARTIAL
from git_scale.errors import DataError
from git_scale.files import sync_folder

log = logging.getLogger(__name__)

LOST_AND_FOUND = "lost+found"  # in the root of a new ext4 volume


@contextmanager
def new_shard_folder(destination: Path) -> Iterator[Path]:
    """A hidden folder to write to, whose content becomes `destination` when the block ends well.

    It lies beside a destination that is not there yet, and is renamed. It lies inside one that is there and empty,
    which may be a mount point that nothing can be renamed onto: its content is then moved up, and the shards are
    read only when all of it has arrived.

    When the block raises, nothing is left, except for a disk that is full or fails: the shards that are complete
    then stay where they are, and the message says where. Raises DataError, before anything is written, when
    `destination` is a file, holds anything already or cannot be made.
    """
    destination = destination.resolve()  # a link to a scratch disk stays a link
    _refuse_used(destination)
    inside = destination.is_dir()
    parent = destination if inside else destination.parent
    folder = parent / f".{destination.name}.{uuid.uuid4().hex[:12]}{PARTIAL}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"{destination}: cannot be made: {error.strerror}; choose another folder") from None
    done = False
    try:
        yield folder
        done = True
        if inside:
            _move_up(folder, destination)
        else:
            folder.rename(destination)
        sync_folder(parent)
    except OSError as error:
        raise DataError(f"{destination}: cannot be written: {error}; {_remains(folder, done)}") from None
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _refuse_used(destination: Path) -> None:
    if destination.is_file():
        raise DataError(f"{destination}: is a file; choose another folder")
    try:
        found = [path.name for path in destination.iterdir()] if destination.is_dir() else []
    except OSError as error:
        raise DataError(f"{destination}: cannot be read: {error.strerror}; choose another folder") from None
    names = [name for name in found if name != LOST_AND_FOUND]
    if any(name.endswith(PARTIAL) for name in names):
        raise DataError(
            f"{destination}: another build into it is running or was cut off; remove it or choose another folder"
        )
    if names:
        raise DataError(f"{destination}: exists already and is not empty; remove it or choose another folder")
    for left in destination.parent.glob(f".{glob.escape(destination.name)}.*{PARTIAL}"):
        log.warning("%s: left by a build that was cut off, or of one that is running; else remove it", left)


def _move_up(folder: Path, destination: Path) -> None:
    for path in sorted(folder.iterdir()):
        path.rename(destination / path.name)
    folder.rmdir()


def _remains(folder: Path, done: bool) -> str:
    if done:
        return f"all of it is built and lies in {folder}; move it to where it belongs"
    if shards := len(list(folder.rglob("*.tar"))):
        return f"the {shards} complete shards lie in {folder}"
    shutil.rmtree(folder, ignore_errors=True)
    return "nothing was built"
