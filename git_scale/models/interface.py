"""What training, tensor parallelism, planning and evaluation ask of a model, so that none guesses from names."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn


class Tower(NamedTuple):
    """A part of a model that has a learning rate of its own.

    Tower NAME learns at optimizer.NAME_lr, and parallel.NAME=true divides it over a tensor-parallel group.
    """

    parts: tuple[str, ...]
    """Names of the model's children that belong to it."""
    split: nn.Module
    """Of these the one whose layers the rules of parallel/rules.py divide; the others are whole on each rank."""


class Block(NamedTuple):
    """What a model repeats: compiled by itself, with its activations recomputed by itself."""

    module: nn.Module
    sizes_vary: bool
    """Whether its inputs have any length, as texts do; images have few sizes."""


class Stream(NamedTuple):
    """What sequence parallelism divides over a tensor-parallel group, from where each rank takes its own images to
    where it gets all of them again. Images (or texts, image by image) are the first dimension everywhere on it."""

    parts: tuple[str, ...]
    """Names of the model's children that lie on it."""
    inputs: tuple[nn.Module, ...]
    """Modules of whose inputs each rank takes its images."""
    beginnings: tuple[nn.Module, ...]
    """Modules of whose output each rank takes its images."""
    ends: tuple[nn.Module, ...]
    """Modules of whose (last) output each rank gets all images."""


class TrainableModel(Protocol):
    """A model as the trainer wants it, an nn.Module; its forward pass takes what the run's objectives give it."""

    def towers(self) -> Mapping[str, Tower]:
        """By name. Every parameter belongs to one of them."""

    def blocks(self) -> Iterator[Block]: ...

    def stream(self, split: Collection[str]) -> Stream:
        """`split`: names of the towers that are divided over the group."""

    def set_activation_checkpointing(self, enable: bool) -> None: ...

    def named_children(self) -> Iterator[tuple[str, nn.Module]]: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


class Runner(Protocol):
    """A model on all ranks: the training engine, or one that only runs forward."""

    device: torch.device
    dtype: torch.dtype

    @property
    def model(self) -> Any:
        """An AutoregressiveModel (inference/stream.py) with train() and eval()."""

    @property
    def is_whole_on_each_rank(self) -> bool:
        """False where every forward pass is collective."""


def tower_of(parameter_name: str, towers: Mapping[str, Tower]) -> str:
    """The name of the tower that a parameter belongs to. Raises ValueError where there is none."""
    part = parameter_name.partition(".")[0]
    for name, tower in towers.items():
        if part in tower.parts:
            return name
    raise ValueError(
        f"{parameter_name} belongs to none of the model's towers ({', '.join(towers)}): it would not learn"
    )
