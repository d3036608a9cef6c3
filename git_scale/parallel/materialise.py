"""From a model on meta to this rank's share of it, module by module: no more than one is ever whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from git_scale.checkpoint.sharding import shard_of
from git_scale.config import RunConfig
from git_scale.models.deferred import DeferredModel
from git_scale.parallel.buffers import persistent_buffers
from git_scale.parallel.collectives import check_stop_together
from git_scale.parallel.ds_config import merge_ds_config, zero_stage
from git_scale.parallel.mpu import mpu_of_run
from git_scale.parallel.rules import Splits
from git_scale.parallel.sequence import sum_gradients
from git_scale.parallel.splits import splits_of, tied_parameters
from git_scale.parallel.topology import Topology
from git_scale.parallel.zero import Partitioner
from git_scale.precision import DTYPES

Values = Callable[[str], Tensor]
"""The whole tensor of a name, on CPU; the same on all ranks."""


@dataclass(frozen=True)
class MaterialisedModel:
    """A model of which this rank holds its share, and what is known of the whole."""

    model: Any
    shapes: dict[str, torch.Size]
    """Of whole parameters and persistent buffers, each under one name."""
    splits: Splits
    aliases: dict[str, str]
    """Second name of a tied parameter -> its first."""


def materialise_model(
    deferred: DeferredModel,
    run: RunConfig,
    values: Values,
    ds_config: dict[str, Any],
    topology: Topology,
    device: torch.device,
) -> MaterialisedModel:
    """Splits the model over the tensor-parallel group, fills it module by module and, under ZeRO-3, partitions it.

    Collective. Raises ConfigError for what cannot be split; Stopped, on all ranks, when any was asked to stop.
    """
    model = deferred.module
    splits = splits_of(model, run.parallel)
    aliases = tied_parameters(model)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    shapes |= {name: buffer.shape for name, buffer in persistent_buffers(model)}
    if topology.tp > 1:
        from git_scale.parallel.tensor import make_tensor_parallel

        make_tensor_parallel(model, run.parallel)
    config = merge_ds_config(ds_config, run, topology.dp)
    stage = zero_stage(ds_config, run.train.precision)
    partition = Partitioner(config, mpu_of_run()) if stage == 3 else _keep_whole
    _fill(model, splits, values, topology, device, DTYPES[run.train.precision], partition)
    if run.parallel.sequence and topology.tp > 1:
        sum_gradients(model, splits, run.parallel)
    return MaterialisedModel(model, shapes, splits, aliases)


def _keep_whole(parameters: list[nn.Parameter]) -> None:
    """Below ZeRO-3 every rank keeps its share of each parameter."""


def _fill(
    model: nn.Module,
    splits: Splits,
    values: Values,
    topology: Topology,
    device: torch.device,
    dtype: torch.dtype,
    partition: Callable[[list[nn.Parameter]], None],
) -> None:
    """Gives each parameter and buffer of `model` its values, in place; parameters in `dtype`.

    `partition` gets a module's parameters before the next module's come into being; ZeRO-3 partitions them there.
    """
    done: dict[int, nn.Parameter] = {}  # a tied table is met twice
    for path, module in model.named_modules():
        check_stop_together(device)
        prefix = f"{path}." if path else ""
        fresh: list[nn.Parameter] = []
        for name, empty in list(module._parameters.items()):
            if empty is None:
                continue
            if id(empty) not in done:
                share = shard_of(values(prefix + name), splits[prefix + name], topology.tp, topology.tp_rank)
                done[id(empty)] = _parameter(share, empty, device, dtype)
                fresh.append(done[id(empty)])
                # DeepSpeed counts a parameter on every tensor-parallel rank if it carries this mark, else on the
                # first alone: without it the global gradient norm would be wrong, and so would clipping.
                done[id(empty)].tensor_model_parallel = splits[prefix + name] is not None  # type: ignore[attr-defined]
            module._parameters[name] = done[id(empty)]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = values(prefix + name).to(device)
        partition(fresh)


def _parameter(share: Tensor, empty: Any, device: torch.device, dtype: torch.dtype) -> nn.Parameter:
    if share.shape != empty.shape:
        raise ValueError(f"a share of {list(share.shape)} where the model wants {list(empty.shape)}")
    own = torch.empty(share.shape, dtype=dtype, device=device)  # a view would keep the whole alive
    return nn.Parameter(own.copy_(share), requires_grad=empty.requires_grad)
