"""What training, tensor parallelism, planning and evaluation ask of a model, so that none guesses from names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    """Whether its inputs have any length, as texts do; pictures have few sizes."""


class TrainableModel(Protocol):
    """A model as the trainer wants it; its forward pass takes what the run's objectives give it."""

    def towers(self) -> Mapping[str, Tower]:
        """By name. Every parameter belongs to one of them."""

    def blocks(self) -> Iterator[Block]: ...

    def set_activation_checkpointing(self, enable: bool) -> None: ...


class Runner(Protocol):
    """A model on all ranks: the training engine, or one that only runs forward."""

    device: torch.device
    dtype: torch.dtype

    @property
    def model(self) -> Any:
        """A Decodable (inference/stream.py) with train() and eval()."""

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
