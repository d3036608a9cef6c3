"""The model as one rank of a tensor-parallel group holds it, on `meta`: real classes, local shapes, no memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from torch import nn

from git_scale.checkpoint.sharding import local_shape
from git_scale.config import ModelConfig, RunConfig
from git_scale.data.images import longest_side
from git_scale.models.build import build_model
from git_scale.models.freezing import freeze
from git_scale.models.git import GitModel
from git_scale.models.interface import tower_of
from git_scale.parallel.rules import ColumnParallel, RowParallel, make_local
from git_scale.parallel.sequence import column_forward, divide_stream, row_forward
from git_scale.parallel.splits import split_modules, splits_of, tie_parameters, tied_parameters
from git_scale.planning.meta import GroupOnMeta, on_meta
from git_scale.precision import DTYPES


@dataclass(frozen=True)
class ParameterSpec:
    """What a plan must know of one."""

    name: str
    numel: int
    ndim: int
    element: int
    """Bytes of one number."""
    learns: bool
    tower: str
    """Of the model, at whose rate it learns."""
    is_table: bool
    """Of an embedding."""


@dataclass(frozen=True)
class LocalModel:
    """One rank's share of a model and what it exchanges with its tensor-parallel group."""

    model: Any
    columns: list[nn.Module]
    """Layers whose input's gradient is summed over the group; none under sequence parallelism."""
    rows: list[nn.Module]
    """Layers whose output is summed over the group; none under sequence parallelism."""
    group: GroupOnMeta
    """Notes what sequence parallelism exchanges instead."""


def whole_model(config: ModelConfig, frozen: tuple[str, ...] = ()) -> GitModel:
    """The model on meta, in evaluation mode and with frozen parameters marked; GIT2 takes half a second to build.

    To be looked at, not changed: all who look get the same one. Raises ConfigError for a pattern in `frozen` that
    matches nothing, and when nothing learns.
    """
    return _whole_model(config.model_dump_json(), frozen)


@lru_cache(maxsize=2)  # a run's with what it freezes, and as it is
def _whole_model(model: str, frozen: tuple[str, ...]) -> GitModel:
    return _build(ModelConfig.model_validate_json(model), frozen).eval()


def _build(config: ModelConfig, frozen: tuple[str, ...]) -> GitModel:
    with on_meta():
        model = build_model(config)
    freeze(model, frozen)
    return model


def build_local(run: RunConfig) -> LocalModel:
    """Parameters in the run's precision, frozen ones marked.

    Raises ConfigError for what parallel.tp cannot split, and for what train.freeze gets wrong.
    """
    model = _build(run.model, run.train.freeze)
    columns, rows = _localise(model, run) if run.parallel.tp > 1 else ([], [])
    group = GroupOnMeta(run.parallel.tp if run.parallel.sequence else 1)
    if group.size > 1:
        divide_stream(model, run.parallel, group)
        for layers, forward in ((columns, column_forward), (rows, row_forward)):
            for layer in layers:
                layer.forward = partial(forward, layer, group=group)
        columns, rows = [], []
    for parameter in model.parameters():
        parameter.data = parameter.data.to(DTYPES[run.train.precision])
    model.set_activation_checkpointing(run.train.activation_checkpointing)
    return LocalModel(model.train(), columns, rows, group)


def parameters_of(model: Any) -> tuple[ParameterSpec, ...]:
    """In their order, a tied one once."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    towers = model.towers()
    return tuple(
        ParameterSpec(
            name,
            p.numel(),
            p.ndim,
            p.element_size(),
            p.requires_grad,
            tower_of(name, towers),
            id(p) in tables,
        )
        for name, p in model.named_parameters()
    )


def largest_image(run: RunConfig) -> tuple[int, int]:
    """Height and width of the largest image that training will see."""
    size = max(run.train_image_sizes)
    return (size, longest_side(run.data, size)) if run.data.resize == "fit" else (size, size)


def _localise(model: Any, run: RunConfig) -> tuple[list[nn.Module], list[nn.Module]]:
    """Makes every parameter this rank's share and every number of heads its own, in place.

    Returns the column- and the row-parallel layers.
    """
    tied = tied_parameters(model)
    for name, split in splits_of(model, run.parallel).items():
        if split is None or name in tied:
            continue
        path, _, leaf = name.rpartition(".")
        whole = model.get_parameter(name)
        share = whole.new_empty(local_shape(whole.shape, split, run.parallel.tp))
        setattr(model.get_submodule(path), leaf, nn.Parameter(share, whole.requires_grad))
    tie_parameters(model, tied)
    columns: list[nn.Module] = []
    rows: list[nn.Module] = []
    for part in split_modules(model, run.parallel):
        make_local(part.module, part.rule, run.parallel.tp)
        for layer in part.layers:
            match layer.cut:
                case ColumnParallel():
                    columns.append(getattr(part.module, layer.child))
                case RowParallel():
                    rows.append(getattr(part.module, layer.child))
    return columns, rows
