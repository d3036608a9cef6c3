"""Full fp32 weights out of a checkpoint that DeepSpeed has sharded, one at a time, without DeepSpeed.

DeepSpeed's files, as git_scale writes them, hold tensors and plain values only and are read with
weights_only=True, memory-mapped. Each ZeRO stage stores the weights in its own way:

    stage 0      mp_rank_00_model_states.pt: the whole module
    stage 1, 2   *zero_pp_rank_R_*_optim_states.pt: per parameter group one flat vector, cut into R pieces
    stage 3      the same files: each parameter cut into R pieces of equal, padded length

What does not learn has no fp32 copy: stages 0 to 2 keep it in the module, stage 3 in pieces in each rank's
*zero_pp_rank_R_*_model_states.pt.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from git_scale.checkpoint import layout
from git_scale.checkpoint.sources import TorchFiles
from git_scale.errors import CheckpointError

# The name in GitModel.state_dict() that is another name of the same parameter when the head is tied.
TIED_NAME, TIED_TO = "decoder.head.weight", "decoder.embedding.words.weight"


class Weights(Protocol):
    """Tensors by the names of GitModel.state_dict(), one at a time."""

    shapes: dict[str, torch.Size]
    dropped: dict[str, str]
    """Name in the source -> the reason why it is not taken."""

    def read(self, name: str) -> Tensor:
        """On CPU, fp32 (non floating dtypes as stored). Raises CheckpointError."""


def load_weights(checkpoint: Path) -> dict[str, Tensor]:
    """All weights of a training checkpoint. Raises CheckpointError when a file is missing or damaged."""
    check_files(checkpoint)
    weights = TrainingWeights(checkpoint)
    return {name: weights.read(name) for name in weights.shapes}


def check_files(checkpoint: Path) -> None:
    if damage := layout.first_damage(checkpoint, layout.read_manifest(checkpoint)):
        raise CheckpointError(f"{checkpoint}: {damage}; take another checkpoint of the run")


def check_names(path: Path, expected: dict[str, torch.Size], found: dict[str, torch.Size]) -> None:
    """Raises CheckpointError, naming all tensors that are missing, too many or of another shape."""
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in expected]
    problems += [
        f"{name} has the shape {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{path}: its tensors do not fit its model: {'; '.join(problems[:5])}{more}")


def read_finite(weights: Weights, name: str) -> Tensor:
    """Raises CheckpointError when the tensor holds NaN or infinity."""
    tensor = weights.read(name)
    # the sum is not finite if one number is not; a large finite tensor whose sum overflows is looked at again
    if tensor.is_floating_point() and not bool(tensor.sum().isfinite()) and not bool(tensor.isfinite().all()):
        raise CheckpointError(f"{name} holds numbers that are not finite (NaN or infinity)")
    return tensor


Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class _Segment:
    """`length` numbers of a flat vector: in which file, under which keys, from where on."""

    path: Path
    keys: Keys
    start: int
    length: int


class TrainingWeights:
    """Weights of a training checkpoint of any ZeRO stage; memory stays at one tensor and some mapped pages."""

    def __init__(self, checkpoint: Path) -> None:
        self.dropped: dict[str, str] = {}
        self._files = TorchFiles()
        self._segments: dict[str, list[_Segment]] = {}
        self.shapes: dict[str, torch.Size] = {}
        for name, shape, segments in _plan(checkpoint / layout.STATE_FOLDER, self._files):
            self.shapes[name], self._segments[name] = shape, segments

    def read(self, name: str) -> Tensor:
        segments = self._segments[name]
        first = self._find(segments[0])
        dtype = torch.float32 if first.is_floating_point() else first.dtype
        whole = torch.empty(self.shapes[name].numel(), dtype=dtype)
        filled = 0
        for segment in segments:
            part = self._find(segment)[segment.start : segment.start + segment.length]
            self._files.copy(part, whole[filled : filled + segment.length])
            filled += segment.length
        return whole.view(self.shapes[name])

    def _find(self, segment: _Segment) -> Tensor:
        tree: Any = self._files.load(segment.path)
        for key in segment.keys:
            tree = tree[key]
        tensor: Tensor = tree.detach().flatten()
        return tensor


Plan = Iterator[tuple[str, torch.Size, list[_Segment]]]


def _plan(folder: Path, files: TorchFiles) -> Plan:
    """Each name of the state dict with the segments that make it up."""
    optimizer_files = _by_rank(folder, "optim_states")
    model_files = sorted(folder.glob("*mp_rank_00_model_states.pt"))
    if not model_files:
        raise CheckpointError(f"{folder}: holds no weights (*mp_rank_00_model_states.pt)")
    model_states = files.load(model_files[0])
    module = model_states["module"]
    if not optimizer_files:
        yield from _plan_module(model_files[0], module, module)
        return
    groups = model_states["param_shapes"]
    if files.load(optimizer_files[0])["optimizer_state_dict"]["zero_stage"] == 3:
        merged = [*_plan_stage3(optimizer_files, groups, files), *_plan_frozen_stage3(folder, files)]
    else:
        merged = list(_plan_stage1_and_2(optimizer_files, groups, files))
        learned = {name for name, _, _ in merged}
        tied = model_states["shared_params"] or {}
        merged += _plan_module(
            model_files[0],
            module,
            [n for n in module if n not in {*learned, *tied, *model_states["buffer_names"]}],
        )
    yield from merged
    yield from _plan_module(model_files[0], module, model_states["buffer_names"])
    known = {name: (shape, segments) for name, shape, segments in merged}
    for alias, name in (model_states["shared_params"] or {}).items():
        yield alias, *known[name]


def _by_rank(folder: Path, ending: str) -> list[Path]:
    """One file per rank, in rank order."""
    ranks = {
        int(match[1]): path
        for path in folder.glob(f"*_{ending}.pt")
        if (match := re.search(r"zero_pp_rank_(\d+)_", path.name))
    }
    return [ranks[rank] for rank in sorted(ranks)]


def _plan_module(path: Path, module: dict[str, Tensor], names: Any) -> Plan:
    for name in names:
        yield name, module[name].shape, [_Segment(path, ("module", name), 0, module[name].numel())]


@dataclass(frozen=True)
class _Vector:
    """A flat vector that lies in several pieces, in files."""

    pieces: list[tuple[Path, Keys, int]]  # file, keys, length

    def cut(self, start: int, length: int) -> list[_Segment]:
        found, offset = [], 0
        for path, keys, size in self.pieces:
            low, high = max(start, offset), min(start + length, offset + size)
            if low < high:
                found.append(_Segment(path, keys, low - offset, high - low))
            offset += size
        return found


def _plan_stage1_and_2(paths: list[Path], groups: list[dict[str, torch.Size]], files: TorchFiles) -> Plan:
    key = "single_partition_of_fp32_groups"
    for number, shapes in enumerate(groups):
        keys: Keys = ("optimizer_state_dict", key, number)
        flat = _Vector([(p, keys, files.load(p)["optimizer_state_dict"][key][number].numel()) for p in paths])
        offset = 0
        for name, shape in shapes.items():
            yield name, shape, flat.cut(offset, shape.numel())
            offset += shape.numel()


def _plan_stage3(paths: list[Path], groups: list[dict[str, torch.Size]], files: TorchFiles) -> Plan:
    # DeepSpeed may cut a group into sub-groups; the pieces of its parameters stay in order across them.
    key = "fp32_flat_groups"
    flats = []
    for path in paths:
        parts = files.load(path)["optimizer_state_dict"][key]
        flats.append(
            _Vector([(path, ("optimizer_state_dict", key, i), part.numel()) for i, part in enumerate(parts)])
        )
    offset = 0
    for shapes in groups:
        for name, shape in shapes.items():
            piece = math.ceil(shape.numel() / len(flats))
            segments = [segment for flat in flats for segment in flat.cut(offset, piece)]
            yield name, shape, _trim(segments, shape.numel())
            offset += piece


def _plan_frozen_stage3(folder: Path, files: TorchFiles) -> Plan:
    paths = _by_rank(folder, "model_states")
    for name, shape in (files.load(paths[0])["frozen_param_shapes"] or {}).items():
        key = "frozen_param_fragments"
        pieces = [_Segment(p, (key, name), 0, files.load(p)[key][name].numel()) for p in paths]
        yield name, shape, _trim(pieces, shape.numel())


def _trim(segments: list[_Segment], length: int) -> list[_Segment]:
    """Without the padding behind the last piece."""
    kept = []
    for segment in segments:
        take = min(segment.length, length)
        if take:
            kept.append(_Segment(segment.path, segment.keys, segment.start, take))
        length -= take
    return kept
