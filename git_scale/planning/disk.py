"""What the checkpoints of a run take on its disk, against what is free there."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from git_scale.checkpoint.layout import checkpoints_folder
from git_scale.config import RunConfig
from git_scale.errors import ConfigError
from git_scale.planning.cluster import GIB
from git_scale.planning.local_model import build_local
from git_scale.planning.states import FP32, MOMENTS


@dataclass(frozen=True)
class Room:
    """Bytes of a run's checkpoints and of the disk below its folder."""

    run_dir: str
    each: int
    """A checkpoint: fp32 weights and buffers, two moments of what learns. Headers and the tokenizer come on top."""
    count: int
    """checkpoint.keep, the best one where one is kept, and the one being written."""
    held: int
    """What already lies under RUN_DIR/checkpoints."""
    free: int | None
    """None where the file system does not tell."""

    @property
    def suffices(self) -> bool:
        return self.free is None or self.each * self.count <= self.free + self.held


def room_of(run: RunConfig) -> Room:
    """Raises ConfigError when train.freeze leaves nothing to learn."""
    whole = run.model_copy(update={"parallel": run.parallel.model_copy(update={"tp": 1})})
    model = build_local(whole).model
    buffers = sum(buffer.numel() for buffer in model.buffers())
    numbers = sum(parameter.numel() for parameter in model.parameters()) + buffers
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    count = run.checkpoint.keep + (run.checkpoint.best is not None) + 1
    held = _size(checkpoints_folder(Path(run.run_dir)))
    return Room(run.run_dir, FP32 * numbers + MOMENTS * learning, count, held, _free(Path(run.run_dir)))


def describe_room(room: Room) -> str:
    """One line, and another one where not all of them will fit."""
    free = "an unknown amount" if room.free is None else f"{amount(room.free)}"
    held = f" beside the {amount(room.held)} that lie there" if room.held else ""
    line = (
        f"checkpoints: {amount(room.each)} each, up to {room.count} at a time:"
        f" {amount(room.each * room.count)}; free for {room.run_dir}: {free}{held}"
    )
    if room.suffices:
        return line
    needed = amount(room.each * room.count - room.held)
    return (
        f"{line}\nNOT ALL OF THEM WILL FIT: free {needed} there, set run_dir to another disk or checkpoint.keep lower"
        " (2 at least); a checkpoint that cannot be written is left out"
    )


def refuse_if_none_fits(room: Room) -> None:
    """Raises ConfigError: a run that can save nothing is not begun. A new one is written before an old one goes."""
    if room.free is not None and room.each > room.free:
        raise ConfigError(
            [
                f"run_dir={room.run_dir}: a checkpoint takes {amount(room.each)}, and"
                f" {amount(room.free)} are free there: free some, or set run_dir to another disk"
            ]
        )


def amount(size: int) -> str:
    return f"{size / GIB:,.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:,.2f} MiB"


def _free(path: Path) -> int | None:
    """Of the disk that the path lies on, or would lie on."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 - what is not there yet has no real path
    try:
        usage = shutil.disk_usage(next(place for place in (path, *path.parents) if place.exists()))
    except OSError:
        return None
    return usage.free if usage.total else None  # some network file systems say 0 of 0


def _size(folder: Path) -> int:
    try:
        return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
    except OSError:
        return 0
