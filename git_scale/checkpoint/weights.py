"""Full fp32 weights out of a checkpoint that DeepSpeed has sharded, on any machine, without DeepSpeed.

DeepSpeed's files, as git_scale writes them, hold tensors and plain values only and are read with
weights_only=True, memory-mapped. Each ZeRO stage stores the weights in its own way:

    stage 0      mp_rank_00_model_states.pt: the whole module
    stage 1, 2   *zero_pp_rank_R_*_optim_states.pt: per parameter group one flat vector, cut into R pieces
    stage 3      the same files: each parameter cut into R pieces of equal, padded length
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from git_scale.checkpoint import layout
from git_scale.errors import CheckpointError

Shapes = list[dict[str, torch.Size]]  # per parameter group, in the order of the flat vectors


def load_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The model's state dict, tied names included. Raises CheckpointError when a file is missing or damaged."""
    if damage := layout.first_damage(checkpoint, layout.read_manifest(checkpoint)):
        raise CheckpointError(f"{checkpoint}: {damage}; take another checkpoint of the run")
    folder = checkpoint / layout.STATE_FOLDER
    model_states = _read(min(folder.glob("*mp_rank_00_model_states.pt")))
    weights: dict[str, Tensor] = {}
    shards = [_read(path)["optimizer_state_dict"] for path in _optimizer_files(folder)]
    if shards:
        merge = _merge_stage3 if shards[0]["zero_stage"] == 3 else _merge_stage1_and_2
        weights.update(merge(shards, model_states["param_shapes"]))
        weights.update((name, model_states["module"][name]) for name in model_states["buffer_names"])
        weights.update(
            (alias, weights[name]) for alias, name in (model_states["shared_params"] or {}).items()
        )
    else:
        weights.update(model_states["module"])
    return {name: _plain_fp32(tensor) for name, tensor in weights.items()}


def _plain_fp32(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.float() if tensor.is_floating_point() else tensor


def _read(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


def _optimizer_files(folder: Path) -> list[Path]:
    """One file per rank, in rank order; none for stage 0."""
    ranks = {
        int(match[1]): path
        for path in folder.glob("*_optim_states.pt")
        if (match := re.search(r"zero_pp_rank_(\d+)_", path.name))
    }
    return [ranks[rank] for rank in sorted(ranks)]


def _merge_stage1_and_2(shards: list[dict[str, Any]], groups: Shapes) -> Iterator[tuple[str, Tensor]]:
    for number, shapes in enumerate(groups):
        flat = torch.cat([shard["single_partition_of_fp32_groups"][number] for shard in shards])
        offset = 0
        for name, shape in shapes.items():
            yield name, flat[offset : offset + shape.numel()].view(shape)
            offset += shape.numel()


def _merge_stage3(shards: list[dict[str, Any]], groups: Shapes) -> Iterator[tuple[str, Tensor]]:
    # DeepSpeed may cut a group into sub-groups; the pieces of its parameters stay in order across them.
    flats = [torch.cat(shard["fp32_flat_groups"]) for shard in shards]
    offset = 0
    for shapes in groups:
        for name, shape in shapes.items():
            piece = math.ceil(shape.numel() / len(flats))
            whole = torch.cat([flat[offset : offset + piece] for flat in flats])
            yield name, whole[: shape.numel()].view(shape)
            offset += piece
