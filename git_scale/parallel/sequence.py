"""Sequence parallelism: between split layers a rank of a tensor-parallel group has its own pictures alone.

Plain tensor parallelism computes what lies between split layers on every rank of a group from the same numbers, and
keeps it on each for the backward pass. Here this stream is divided along its first dimension: a column-parallel layer
gathers it, a row-parallel one sums and divides it again. megatron-core's sequence is the first dimension of its
streams; ours are pictures (or windows, picture by picture) first, so that no number of tokens need be divisible and
what looks at neighbouring tokens - convolutions, windows, positions - sees all of them.

megatron-core's own functions will not do: they allocate on the current CUDA device, whatever the tensors' device.
Everything here exchanges with the tensor-parallel group, and is for training alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from git_scale.config import ParallelConfig
from git_scale.parallel.collectives import sum_over_tp
from git_scale.parallel.groups import GROUPS
from git_scale.parallel.splits import Splits


def own_pictures(everyones: Tensor) -> Tensor:
    """This rank's pictures out of all [B, ...] -> [B/tp, ...], a view."""
    return everyones.chunk(dist.get_world_size(GROUPS.tp))[dist.get_rank(GROUPS.tp)]


def start_gathering(own: Tensor) -> tuple[Tensor, dist.Work]:
    """All ranks' pictures, once the work is done."""
    everyones = own.new_empty(len(own) * dist.get_world_size(GROUPS.tp), *own.shape[1:])
    return everyones, _started(
        dist.all_gather_into_tensor(everyones, own.contiguous(), group=GROUPS.tp, async_op=True)
    )


def start_summing(partial: Tensor) -> tuple[Tensor, dist.Work]:
    """The ranks' sum for this rank's pictures, once the work is done."""
    own = torch.empty_like(own_pictures(partial), memory_format=torch.contiguous_format)
    return own, _started(
        dist.reduce_scatter_tensor(own, partial.contiguous(), group=GROUPS.tp, async_op=True)
    )


def _started(work: dist.Work | None) -> dist.Work:
    assert work is not None, "every rank that comes here is of the group"
    return work


def _gathered(own: Tensor) -> Tensor:
    everyones, work = start_gathering(own)
    work.wait()
    return everyones


class GatherPictures(torch.autograd.Function):
    """Every rank goes on with all pictures, and does the same with them."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return _gathered(own)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return own_pictures(gradient)


class DividePictures(torch.autograd.Function):
    """Of what all ranks have alike, each goes on with its own pictures."""

    @staticmethod
    def forward(ctx: Any, everyones: Tensor) -> Tensor:
        return own_pictures(everyones).clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _gathered(gradient)


class SumAndDividePictures(torch.autograd.Function):
    """The end of a row-parallel layer: the ranks' products are summed, each goes on with its own pictures."""

    @staticmethod
    def forward(ctx: Any, partial: Tensor) -> Tensor:
        own, work = start_summing(partial)
        work.wait()
        return own

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _gathered(gradient)


class LinearOfGathered(torch.autograd.Function):
    """A column-parallel layer. Only this rank's pictures are kept; the backward pass gathers all of them again."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(own, weight)
        return F.linear(_gathered(own), weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        own, weight = ctx.saved_tensors
        wants_input, wants_weight, wants_bias = ctx.needs_input_grad
        of_input = of_weight = of_bias = None
        # Each exchange goes on during the product that does not need it.
        if wants_weight:
            everyones, gathering = start_gathering(own)
        if wants_input:
            of_input, summing = start_summing(gradient @ weight)
        if wants_weight:
            gathering.wait()
            of_weight = gradient.flatten(0, -2).T @ everyones.flatten(0, -2)
        if wants_bias:
            of_bias = gradient.flatten(0, -2).sum(0)
        if wants_input:
            summing.wait()
        return of_input, of_weight, of_bias


def column_forward(layer: Any, own: Tensor) -> Tensor:
    """In training, of a layer that holds this rank's outputs: all pictures' [B, ..., D/tp] from this rank's."""
    return LinearOfGathered.apply(own, layer.weight, layer.bias)


def row_forward(layer: Any, everyones: Tensor) -> Tensor:
    """In training, of a layer that holds this rank's inputs: this rank's pictures [B/tp, ..., D] from all of them."""
    own = SumAndDividePictures.apply(F.linear(everyones, layer.weight))
    return own if layer.bias is None else own + layer.bias


def divide_stream(model: Any, parallel: ParallelConfig) -> None:
    """Divides the pictures where the stream begins, and gathers them where all ranks go on alike, by hooks.

    A tower that is left whole has no layer to gather them: the encoder sees this rank's pictures and no others, the
    decoder sees all of them on every rank.
    """
    model.encoder.register_forward_pre_hook(_divide_images)
    if parallel.decoder:
        model.decoder.embedding.words.register_forward_hook(_divide_embedded)
        # The rows of a loss are counted over all pictures.
        model.decoder.layers[-1].register_forward_hook(_gather_text)
    else:
        model.projection.register_forward_hook(_gather_projected)


def _divide_images(encoder: nn.Module, images: tuple[Tensor]) -> Tensor | None:
    return own_pictures(images[0]) if encoder.training else None


def _divide_embedded(words: nn.Module, _: Any, embedded: Tensor) -> Tensor | None:
    return DividePictures.apply(embedded) if words.training else None


def _gather_text(layer: nn.Module, _: Any, streams: tuple[None, Tensor]) -> tuple[None, Tensor] | None:
    return (None, GatherPictures.apply(streams[1])) if layer.training else None


def _gather_projected(projection: nn.Module, _: Any, projected: Tensor) -> Tensor | None:
    return GatherPictures.apply(projected) if projection.training else None


def sum_gradients(model: nn.Module, splits: Splits, parallel: ParallelConfig) -> None:
    """Parameters on the divided stream, which each rank holds whole and uses for its pictures, get the sum over the
    group as their gradient, before DeepSpeed sees it. The model is materialised."""
    for name, parameter in model.named_parameters():
        on_stream = parallel.decoder or not name.startswith("decoder.")
        if on_stream and splits[name] is None and parameter.requires_grad:
            parameter.register_hook(_sum_in_fp32)


def _sum_in_fp32(gradient: Tensor) -> Tensor:
    """Rounded once, as where one rank has all pictures."""
    return sum_over_tp(gradient.to(torch.float32, copy=True)).to(gradient.dtype)
