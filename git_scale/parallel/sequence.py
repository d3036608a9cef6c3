"""Sequence parallelism: between split layers a rank of a tensor-parallel group has its own images alone.

Plain tensor parallelism computes what lies between split layers on every rank of a group from the same numbers, and
keeps it on each for the backward pass. Here this stream is divided along its first dimension: a column-parallel layer
gathers it, a row-parallel one sums and divides it again. megatron-core's sequence is the first dimension of its
streams; ours are images (or windows, image by image) first, so that no number of tokens need be divisible and
what looks at neighbouring tokens - convolutions, windows, positions - sees all of them.

megatron-core's own functions will not do: they allocate on the current CUDA device, whatever the tensors' device.
All of it is for training alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from git_scale.config import ParallelConfig
from git_scale.models.interface import Stream, TrainableModel
from git_scale.parallel.comm import TP, Group
from git_scale.parallel.rules import Splits


def _gathered(own: Tensor, group: Group) -> Tensor:
    everyones, work = group.start_gathering(own)
    work.wait()
    return everyones


class Gather(torch.autograd.Function):
    """Every rank goes on with all images, and does the same with them."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _gathered(own, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.group.own_part(gradient), None


class Scatter(torch.autograd.Function):
    """Of what all ranks have alike, each goes on with its own images."""

    @staticmethod
    def forward(ctx: Any, everyones: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return group.own_part(everyones).clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _gathered(gradient, ctx.group), None


class ReduceScatter(torch.autograd.Function):
    """The end of a row-parallel layer: the ranks' products are summed, each goes on with its own images."""

    @staticmethod
    def forward(ctx: Any, partial: Tensor, group: Group) -> Tensor:
        ctx.group = group
        own, work = group.start_summing(partial)
        work.wait()
        return own

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _gathered(gradient, ctx.group), None


class LinearOfGathered(torch.autograd.Function):
    """A column-parallel layer. Only this rank's images are kept; the backward pass gathers all of them again."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, weight: Tensor, bias: Tensor | None, group: Group) -> Tensor:
        ctx.save_for_backward(own, weight)
        ctx.group = group
        return F.linear(_gathered(own, group), weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        own, weight = ctx.saved_tensors
        wants_input, wants_weight, wants_bias, _ = ctx.needs_input_grad
        of_input = of_weight = of_bias = None
        # Each exchange goes on during the product that does not need it.
        if wants_weight:
            everyones, gathering = ctx.group.start_gathering(own)
        if wants_input:
            of_input, summing = ctx.group.start_summing(gradient @ weight)
        if wants_weight:
            gathering.wait()
            of_weight = gradient.flatten(0, -2).T @ everyones.flatten(0, -2)
        if wants_bias:
            of_bias = gradient.flatten(0, -2).sum(0)
        if wants_input:
            summing.wait()
        return of_input, of_weight, of_bias, None


def column_forward(layer: Any, own: Tensor, group: Group) -> Tensor:
    """In training, of a layer that holds this rank's outputs: all images' [B, ..., D/tp] from this rank's."""
    return LinearOfGathered.apply(own, layer.weight, layer.bias, group)


def row_forward(layer: Any, everyones: Tensor, group: Group) -> Tensor:
    """In training, of a layer that holds this rank's inputs: this rank's images [B/tp, ..., D] from all of them."""
    own = ReduceScatter.apply(F.linear(everyones, layer.weight), group)
    return own if layer.bias is None else own + layer.bias


def divide_stream(model: TrainableModel, parallel: ParallelConfig, group: Group) -> list[nn.Module]:
    """Divides the images where the model's stream begins and gathers them where it ends, by hooks.

    Returns the towers that run on it.
    """
    stream = stream_of(model, parallel)
    for module in stream.inputs:
        module.register_forward_pre_hook(lambda at, args: _own_inputs(at, args, group))
    for module in stream.beginnings:
        module.register_forward_hook(lambda at, _, output: _own_output(at, output, group))
    for module in stream.ends:
        module.register_forward_hook(lambda at, _, output: _everyones_output(at, output, group))
    parts = [child for name, child in model.named_children() if name in stream.parts]
    return [tower.split for tower in model.towers().values() if tower.split in parts]


def stream_of(model: TrainableModel, parallel: ParallelConfig) -> Stream:
    return model.stream({name for name in model.towers() if getattr(parallel, name)})


def _own_inputs(module: nn.Module, args: tuple[Any, ...], group: Group) -> tuple[Any, ...] | None:
    """Of all tensors: an encoder's images, and a number of each by which it leaves out patches."""
    if not module.training:
        return None
    return tuple(group.own_part(arg) if isinstance(arg, Tensor) else arg for arg in args)


def _own_output(module: nn.Module, output: Tensor, group: Group) -> Tensor | None:
    return Scatter.apply(output, group) if module.training else None


def _everyones_output(module: nn.Module, output: Any, group: Group) -> Any:
    """Of several outputs the last is the stream."""
    if not module.training:
        return None
    if isinstance(output, tuple):
        return (*output[:-1], Gather.apply(output[-1], group))
    return Gather.apply(output, group)


def sum_gradients(model: TrainableModel, splits: Splits, parallel: ParallelConfig) -> None:
    """Parameters on the divided stream, which each rank holds whole and uses for its images, get the sum over the
    group as their gradient, before DeepSpeed sees it. The model is materialised."""
    parts = stream_of(model, parallel).parts
    for name, parameter in model.named_parameters():
        on_stream = name.partition(".")[0] in parts
        if on_stream and splits[name] is None and parameter.requires_grad:
            parameter.register_hook(_sum_in_fp32)


def _sum_in_fp32(gradient: Tensor) -> Tensor:
    """Rounded once, as where one rank has all images."""
    return TP.sum_(gradient.to(torch.float32, copy=True)).to(gradient.dtype)
