"""Which checkpoints of a run are whole, its own, or in the way: what may be deleted, moved, or neither."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
from pathlib import Path

from git_scale.checkpoint import layout
from git_scale.errors import CheckpointError
from git_scale.files import sync_folder
from git_scale.formatting import GIB

log = logging.getLogger(__name__)

SET_ASIDE = "set_aside_"

Stamp = list[tuple[str, int, int]]


class VerifiedCheckpoints:
    """Remembers what this process wrote or compared with its manifest, and found whole or damaged.

    A file that was written to since then makes a checkpoint unknown again: sizes and times are looked at.
    """

    def __init__(self) -> None:
        self._whole: dict[Path, Stamp] = {}
        self._damaged: set[Path] = set()
        self._said: set[Path] = set()

    def remember(self, checkpoint: Path, problem: object) -> None:
        if problem is None:
            self._damaged.discard(checkpoint)
            self._whole[checkpoint] = _stamp(checkpoint)
        else:
            self._damaged.add(checkpoint)

    def is_whole(self, checkpoint: Path) -> bool:
        known = self._whole.get(checkpoint)
        if known is None:
            return False
        try:
            return _stamp(checkpoint) == known
        except (CheckpointError, OSError):
            return False

    def is_damaged(self, checkpoint: Path) -> bool:
        return checkpoint in self._damaged

    def say_once(self, path: Path, what: str) -> None:
        if path not in self._said:
            self._said.add(path)
            log.warning("%s %s", path, what)


def _stamp(checkpoint: Path) -> Stamp:
    """Raises CheckpointError or OSError."""
    files = layout.read_manifest(checkpoint)
    found = [(item.name, (checkpoint / item.name).stat()) for item in files]
    return [(name, status.st_size, status.st_mtime_ns) for name, status in found]


def to_verify(candidates: list[Path], verified: VerifiedCheckpoints, keep: int) -> Path | None:
    """The newest one that has to be looked at before any is deleted; None: the newest `keep` whole ones are known."""
    whole = 0
    if len(candidates) <= keep:
        return None
    for checkpoint in candidates:
        if verified.is_whole(checkpoint):
            whole += 1
        elif not verified.is_damaged(checkpoint):
            return checkpoint
        if whole == keep:
            return None
    return None


def delete_older(candidates: list[Path], verified: VerifiedCheckpoints, keep: int, best: str | None) -> None:
    """Deletes what is older than the newest `keep` whole ones, if a run wrote it and nobody put anything into it.

    `candidates` are sorted, the newest first; `best` is the name of one that stays.
    """
    whole = [checkpoint for checkpoint in candidates if verified.is_whole(checkpoint)]
    if len(whole) < keep:
        return
    for old in candidates[candidates.index(whole[keep - 1]) + 1 :]:
        if old.name == best:
            continue
        if reason := _not_ours(old):
            verified.say_once(old, f"is not deleted: {reason}")
            continue
        doomed = old.with_name(f".{old.name}.old")
        try:
            shutil.rmtree(doomed, ignore_errors=True)
            old.rename(doomed)  # what is half deleted has no visible name
            shutil.rmtree(doomed)
        except OSError as error:
            log.warning("%s: cannot be deleted: %s", old, error)


def foreign(checkpoint: Path) -> str:
    """Why no run has written this folder under its name; empty when one may have."""
    return "it is a link" if checkpoint.is_symlink() else layout.misnamed(checkpoint)


def _not_ours(checkpoint: Path) -> str:
    """Why a folder is not this run's to delete; empty when it is."""
    try:
        listed = {item.name for item in layout.read_manifest(checkpoint)} | {layout.MANIFEST}
    except CheckpointError as error:
        return str(error)
    found = (str(path.relative_to(checkpoint)) for path in checkpoint.rglob("[!.]*") if not path.is_dir())
    strange = (f"{name} in it is not the run's" for name in found if name not in listed)
    return foreign(checkpoint) or next(strange, "")


def set_aside(path: Path, reason: object) -> None:
    """Gives what lies in the place of a checkpoint another name, and says so; nothing is deleted. Raises OSError."""
    numbers = itertools.chain([""], (f"_{number}" for number in itertools.count(2)))
    names = (path.with_name(f"{SET_ASIDE}{path.name}{number}") for number in numbers)
    place = next(name for name in names if not os.path.lexists(name))
    path.rename(place)
    sync_folder(path.parent)
    kept = list(path.parent.glob(f"{SET_ASIDE}*"))
    log.warning(
        "%s is no whole checkpoint (%s): set aside as %s, to be looked at or removed; so are %d here, %.2f GiB",
        path,
        reason,
        place.name,
        len(kept),
        sum(map(_size, kept)) / GIB,
    )


def _size(path: Path) -> int:
    files = [path] if path.is_symlink() or path.is_file() else path.rglob("*")
    return sum(file.lstat().st_size for file in files)
