"""A training checkpoint rewritten for another tensor-parallel degree, without GPUs, one parameter at a time.

Resuming does the same on the fly: with another degree every rank reads whole parameters and keeps its share.
Rewritten once, each rank of each start reads its share alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from git_scale.checkpoint import layout
from git_scale.checkpoint.complete import complete_checkpoint
from git_scale.checkpoint.folder import new_model_folder
from git_scale.checkpoint.opened_checkpoint import read_run
from git_scale.checkpoint.sharding import local_shape
from git_scale.checkpoint.state import (
    HeldPieces,
    ParameterPiece,
    StateIndex,
    TrainingState,
    write_pieces,
)
from git_scale.checkpoint.weights import check_files
from git_scale.files import FileDigest, write_bytes
from git_scale.models.build import build_model
from git_scale.parallel.splits import splits_of
from git_scale.progress import bar


def reshape(source: Path, destination: Path, tp: int) -> Path:
    """Makes a run's folder that goes on from `source` (a run or one of its checkpoints) with parallel.tp=`tp`.

    Returns the new checkpoint. Raises CheckpointError or ConfigError before anything is written.
    """
    checkpoint = layout.find_checkpoint(source)
    check_files(checkpoint)
    run = read_run(checkpoint)
    parallel = run.parallel.model_copy(update={"tp": tp})
    run = run.model_copy(update={"run_dir": str(destination), "parallel": parallel})
    state = TrainingState(checkpoint / layout.STATE_FOLDER)
    with torch.device("meta"):
        splits = splits_of(build_model(run.model), parallel)
    index = replace(state.index, tp=tp, splits={name: splits.get(name) for name in state.index.shapes})
    with new_model_folder(destination, None, [checkpoint]) as folder:
        target = layout.checkpoints_folder(folder) / checkpoint.name
        target.mkdir(parents=True)
        written = _write_state(state, index, target / layout.STATE_FOLDER)
        progress = layout.read_progress(checkpoint)
        written += _copy_random_states(checkpoint, target, progress.dp)
        progress = replace(progress, world_size=progress.dp * tp, tp=tp)
        tokenizer = checkpoint / Path(run.data.tokenizer).name
        complete_checkpoint(target, written, index, run, progress, tokenizer)
        for name in (layout.CONFIG, tokenizer.name):
            write_bytes(folder / name, (target / name).read_bytes())
    return layout.checkpoints_folder(destination) / checkpoint.name


def _write_state(state: TrainingState, index: StateIndex, folder: Path) -> list[FileDigest]:
    folder.mkdir()
    written: list[FileDigest] = []
    total = sum(shape.numel() for shape in index.shapes.values()) * index.tp
    with bar(total=total, unit="number", unit_scale=True, desc="reshape", delay=5) as progress:
        for tp_rank in range(index.tp):
            pieces = _pieces(state, index, tp_rank, progress.update)
            written.append(write_pieces(folder / layout.rank_file(tp_rank), tp_rank, pieces))
    return [replace(item, name=f"{layout.STATE_FOLDER}/{item.name}") for item in written]


def _pieces(
    state: TrainingState, index: StateIndex, tp_rank: int, report: Callable[[int], object]
) -> HeldPieces:
    """A tensor-parallel rank's share of everything; what is not cut is the first one's."""
    for name, shape in index.shapes.items():
        split = index.splits[name]
        if split is None and tp_rank > 0:
            continue
        piece = ParameterPiece(name, 0, local_shape(shape, split, index.tp).numel())
        for kind in state.kinds(name):
            yield piece, kind, state.dtype(name), partial(_share, state, index, piece, kind, tp_rank)
        report(shape.numel())


def _share(state: TrainingState, index: StateIndex, piece: ParameterPiece, kind: str, tp_rank: int) -> Tensor:
    return state.read_piece(piece, kind, index.splits[piece.name], index.tp, tp_rank)


def _copy_random_states(checkpoint: Path, target: Path, dp: int) -> list[FileDigest]:
    names = map(layout.rank_file, range(dp))
    return [write_bytes(target / name, (checkpoint / name).read_bytes()) for name in names]
