"""The one door to checkpoints: it finds out what a path holds.

training      a checkpoint of a run, or a run's folder (its newest one)
native        a model folder of git_scale (git_scale/checkpoint/native.py)
huggingface   a folder of transformers with a GIT in it
microsoft     model.pt of the paper's code, or its folder
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from git_scale.checkpoint import layout
from git_scale.checkpoint.huggingface import open_if_huggingface
from git_scale.checkpoint.lookalikes import refuse_lookalike_folder
from git_scale.checkpoint.microsoft import open_if_microsoft
from git_scale.checkpoint.native import ORIGIN, open_native
from git_scale.checkpoint.opened_checkpoint import OpenedCheckpoint, averaged, read_run
from git_scale.checkpoint.state import EMA, TRAINED
from git_scale.checkpoint.weights import TrainingWeights, check_files
from git_scale.errors import CheckpointError, UserError

FOREIGN: tuple[Callable[[Path], OpenedCheckpoint | None], ...] = (open_if_huggingface, open_if_microsoft)
"""Layouts from elsewhere: each opens a path that is of its kind, and gives None for others. One line per layout."""


def open_checkpoint(path: Path, weights: str = TRAINED) -> OpenedCheckpoint:
    """Detects the kind. Raises CheckpointError when it is none, damaged, or not to be read by git_scale.

    `weights`: ema, for the moving average that a run has kept of them.
    """
    if weights not in (TRAINED, EMA):
        raise UserError(f"weights={weights!r}: {TRAINED} or {EMA} is needed")
    opened = _detected(path)
    return averaged(opened) if weights == EMA else opened


def _detected(path: Path) -> OpenedCheckpoint:
    path = layout.best_of(Path(path))
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    if path.is_dir():
        refuse_lookalike_folder(path)
    for open_if in FOREIGN:
        if (opened := open_if(path)) is not None:
            return opened
    return _open_own(layout.find_checkpoint(path))


def _open_own(checkpoint: Path) -> OpenedCheckpoint:
    """A model folder or a training checkpoint of git_scale."""
    listed = check_files(checkpoint)
    if ORIGIN in listed:
        return open_native(checkpoint, listed)
    if layout.PROGRESS not in listed:
        raise CheckpointError(f"{checkpoint}: its {layout.MANIFEST} lists no model and no state of a run")
    run, weights = read_run(checkpoint), TrainingWeights(checkpoint)
    return OpenedCheckpoint(
        kind="training",
        path=checkpoint,
        run=run,
        tokenizer=checkpoint / Path(run.data.tokenizer).name,
        weights=weights,
        step=layout.read_progress(checkpoint).step,
        average=weights.average,
    )
