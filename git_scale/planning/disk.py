"""The space that checkpoints of a run take on its disk, against what is free there."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from git_scale.checkpoint.layout import checkpoints_folder
from git_scale.config import RunConfig
from git_scale.errors import ConfigError
from git_scale.formatting import GIB
from git_scale.planning.local_model import whole_model
from git_scale.planning.partition_sizes import FP32_BYTES, MOMENT_BYTES


@dataclass(frozen=True)
class CheckpointSpace:
    """The bytes that a run's checkpoints take, and those of the disk on which its folder lies."""

    run_dir: str
    each: int
    """A checkpoint takes so many: fp32 weights and buffers, moments and average of what learns; not its headers or
    tokenizer."""
    count: int
    """So many lie there at a time: checkpoint.keep, the best one where one is kept, and the one being written."""
    used: int
    """So many lie under RUN_DIR/checkpoints already."""
    free: int | None
    """It is None where the file system does not tell."""

    @property
    def holds_all(self) -> bool:
        return self.free is None or self.each * self.count <= self.free + self.used


def checkpoint_space(run: RunConfig) -> CheckpointSpace:
    model = whole_model(run.model, run.train.freeze)
    buffers = sum(buffer.numel() for buffer in model.buffers())
    numbers = sum(parameter.numel() for parameter in model.parameters()) + buffers
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    per_learning = MOMENT_BYTES + (FP32_BYTES if run.optimizer.ema is not None else 0)
    count = run.checkpoint.keep + (run.checkpoint.best is not None) + 1
    return CheckpointSpace(
        run.run_dir,
        each=FP32_BYTES * numbers + per_learning * learning,
        count=count,
        used=_size(checkpoints_folder(Path(run.run_dir))),
        free=_free(Path(run.run_dir)),
    )


def describe_space(space: CheckpointSpace) -> str:
    """One line, and another one where not all of them will fit."""
    free = "an unknown amount" if space.free is None else format_bytes(space.free)
    used = f" beside the {format_bytes(space.used)} that lie there" if space.used else ""
    line = (
        f"checkpoints: {format_bytes(space.each)} each, up to {space.count} at a time:"
        f" {format_bytes(space.each * space.count)}; free for {space.run_dir}: {free}{used}"
    )
    if space.holds_all:
        return line
    needed = format_bytes(space.each * space.count - space.used)
    return (
        f"{line}\nNOT ALL OF THEM WILL FIT: free {needed} there, set run_dir to another disk or checkpoint.keep lower"
        " (2 at least); a checkpoint that cannot be written is left out"
    )


def refuse_if_disk_too_small(space: CheckpointSpace) -> None:
    """Raises ConfigError: a run that can save nothing is not begun. A new one is written before an old one goes."""
    if space.free is not None and space.each > space.free:
        raise ConfigError(
            [
                f"run_dir={space.run_dir}: a checkpoint takes {format_bytes(space.each)}, and"
                f" {format_bytes(space.free)} are free there: free some, or set run_dir to another disk"
            ]
        )


def format_bytes(size: int) -> str:
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
