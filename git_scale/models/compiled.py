"""The blocks of encoder and decoder through torch.compile, which fuses what lies between their matrix products."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from git_scale.models.interface import TrainableModel

# Blocks of one class share their code, and with it the versions that torch keeps of it: one per width, image size
# and rate of stochastic depth. Beyond torch's own limit of 8 it would fall back to the plain code without a word.
RECOMPILE_LIMIT = 64


def compile_blocks(model: TrainableModel, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compiles the blocks in place, each at its first training step; evaluation runs the plain code.

    Block by block, not the model: minutes become seconds, and activation checkpointing stays what it is. Encoder
    blocks are compiled per image size, of which there are few; text lengths, which are many, become symbols.
    """
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    for block in model.blocks():
        _compile(block.module, backend, dynamic=None if block.sizes_vary else False)


def _compile(block: nn.Module, backend: str | Callable[..., Any], dynamic: bool | None) -> None:
    plain: Callable[..., Any] = block.forward
    compiled = torch.compile(plain, backend=backend, dynamic=dynamic)

    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return (compiled if block.training else plain)(*args, **kwargs)

    block.forward = forward
