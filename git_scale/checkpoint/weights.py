"""Full weights by the names of GitModel.state_dict(), one at a time, whatever the checkpoint they lie in."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from git_scale.checkpoint import layout
from git_scale.checkpoint.state import EMA, MOMENT_NAMES, WEIGHT, TrainingState
from git_scale.errors import CheckpointError

# The name in GitModel.state_dict() that is another name of the same parameter when the head is tied.
TIED_NAME, TIED_TO = "decoder.head.weight", "decoder.embedding.words.weight"


class Weights(Protocol):
    """Gives tensors by the names of GitModel.state_dict(), one at a time."""

    shapes: dict[str, torch.Size]
    dropped: dict[str, str]
    """Name in the source -> the reason why it is not taken."""

    def read(self, name: str) -> Tensor:
        """On CPU, fp32 (non floating dtypes as stored). Raises CheckpointError."""


class WeightsInMemory:
    """Gives tensors that are there already, as Weights."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self.dropped: dict[str, str] = {}
        self.read = tensors.__getitem__


def check_files(checkpoint: Path) -> set[str]:
    """Compares the files with their manifest and returns their names: no other file may be read.

    Raises CheckpointError.
    """
    files = layout.read_manifest(checkpoint)
    damage = layout.first_damage(checkpoint, files)
    names = {item.name for item in files}
    layout.refuse_stranger(checkpoint, files)
    if damage is None and any(name.startswith(f"{layout.STATE_FOLDER}/") for name in names):
        damage = layout.shortfall(checkpoint, files)
    if damage:
        raise CheckpointError(f"{checkpoint}: {damage}; take another checkpoint of the run")
    return names


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


def is_open_bound(tensor: Tensor) -> bool:
    """A single number that is infinite bounds nothing, as in Gemma's clipped layers: it is meant so."""
    return tensor.ndim == 0 and bool(tensor.isinf())


def read_finite(weights: Weights, name: str) -> Tensor:
    """Raises CheckpointError when the tensor holds NaN or infinity, other than as a bound."""
    tensor = weights.read(name)
    if is_open_bound(tensor):
        return tensor
    # the sum is not finite if one number is not; a large finite tensor whose sum overflows is looked at again
    if tensor.is_floating_point() and not bool(tensor.sum().isfinite()) and not bool(tensor.isfinite().all()):
        raise CheckpointError(f"{name} holds numbers that are not finite (NaN or infinity)")
    return tensor


class TrainingWeights:
    """Reads the weights of a training checkpoint; what learns comes from the fp32 master copies, or their average."""

    def __init__(self, checkpoint: Path) -> None:
        self.dropped: dict[str, str] = {}
        self._of_average = False
        self._state = TrainingState(checkpoint / layout.STATE_FOLDER)
        index = self._state.index
        self.shapes = {**index.shapes, **{alias: index.shapes[name] for alias, name in index.aliases.items()}}

    @property
    def average(self) -> TrainingWeights | None:
        """With the moving average of what learns; None where the run kept none."""
        if not self._state.has_average:
            return None
        average = copy(self)
        average._of_average = True
        return average

    def read(self, name: str) -> Tensor:
        name = self._state.index.aliases.get(name, name)
        learns = MOMENT_NAMES[0] in self._state.kinds(name)
        return self._state.read(name, EMA if self._of_average and learns else WEIGHT)
