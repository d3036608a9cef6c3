"""What a run would be, and what its start would refuse, without starting it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from git_scale.config import RunConfig
from git_scale.data.heldout import heldout_data, named
from git_scale.data.mixture import Mixture, training_sources
from git_scale.data.store import SampleStore, open_store, problem_of
from git_scale.formatting import format_table
from git_scale.models.git import GitModel
from git_scale.parallel.ds_config import check_ds_config
from git_scale.parallel.splits import describe_splits, splits_of
from git_scale.parallel.topology import Topology
from git_scale.planning.cluster import Cluster, accelerator_named, cluster_of, this_cluster
from git_scale.planning.disk import checkpoint_space, describe_space, refuse_if_disk_too_small
from git_scale.planning.local_model import whole_model
from git_scale.planning.model_flops import ModelFlops
from git_scale.planning.plan import Plan, plan, refuse_if_memory_too_small
from git_scale.planning.report import describe_plan
from git_scale.training.init_model import parameter_counts
from git_scale.training.preflight import (
    ProblemList,
    check_data,
    check_image_sizes,
    load_fitting_tokenizer,
    report_sources,
    training_shapes,
)


def dry_run(
    run: RunConfig, ds_config: dict[str, Any], topology: Topology, is_elsewhere: bool, problems: ProblemList
) -> str:
    """The run with its parameters and plan, and in `problems` what a start would refuse; empty without a plan.

    is_elsewhere: it is planned for other machines, so that nothing is asked of this one's data.
    """
    cluster = _cluster(run, topology, is_elsewhere)
    problems.of(lambda: check_ds_config(ds_config, run, cluster.world_size, cluster.kind == "cuda"))
    model = problems.of(lambda: whole_model(run.model))
    if model is None:
        return ""
    model = problems.of(lambda: whole_model(run.model, run.train.freeze)) or model
    if problems.of(lambda: check_image_sizes(run, model.encoder)):
        model_flops = ModelFlops(run.model)
        problems.of(lambda: [model_flops.encoder_pass(*shape) for shape in training_shapes(run)])
    opened = [_opened(source.path, problems) for source in training_sources(run.data).values()]
    heldout = [_opened(one.path, problems) for one in heldout_data(run.data).values()]
    train = [store for store in opened if store is not None]
    if len(train) == len(opened) and not is_elsewhere:
        problems.of(lambda: check_data(run, train, heldout))
        if tokenizer := ProblemList([]).of(lambda: load_fitting_tokenizer(run)):  # else check_inputs says why
            problems.of(lambda: report_sources(run, Mixture(run.data, train), tokenizer))
    planned = problems.of(lambda: plan(run, ds_config, cluster))
    space = problems.of(lambda: checkpoint_space(run))
    if planned is None or space is None:
        return ""
    problems.of(lambda: refuse_if_memory_too_small(planned))
    if not is_elsewhere:
        problems.of(lambda: refuse_if_disk_too_small(space))
    rows = [
        *(("training samples", line) for line in _described(run, opened)),
        *(("held-out samples", line) for line in _described_heldout(run, heldout)),
    ]
    return f"{describe(run, model, planned, rows)}\n\n{describe_space(space)}"


def _described(run: RunConfig, opened: Sequence[SampleStore | None]) -> list[str]:
    """What the run sees of each source, where all of them are there."""
    paths = [source.path for source in training_sources(run.data).values()]
    stores = [store for store in opened if store is not None]
    if len(stores) == len(opened):
        lines = Mixture(run.data, stores).describe(run.train.steps * run.train.global_batch)
        return [f"{path}: {line}" for path, line in zip(paths, lines, strict=True)]
    return [
        f"{path} {'is not there' if store is None else f'{len(store):,} samples'}"
        for path, store in zip(paths, opened, strict=True)
    ]


def _described_heldout(run: RunConfig, opened: Sequence[SampleStore | None]) -> list[str]:
    """What evaluations ask of which samples, and the name that the log has for them."""
    return [
        f"{one.path} is not there"
        if store is None
        else f"{one.path}: {len(store):,} samples, task {one.task}, logged as {named('eval', one.name)}"
        for one, store in zip(heldout_data(run.data).values(), opened, strict=True)
    ]


def _opened(folder: str, problems: ProblemList) -> SampleStore | None:
    """None where there are none, which check_inputs says, and for damaged ones, which is a problem."""
    if problem_of(folder):
        return None
    return problems.of(lambda: open_store(folder))


def _cluster(run: RunConfig, topology: Topology, is_elsewhere: bool) -> Cluster:
    """This machine's devices; GPUs are asked for and not here: H100s in nodes of 8."""
    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if is_elsewhere and here.type == "cpu":
        return cluster_of(accelerator_named("H100"), run.train.precision, topology.world_size, per_node=8)
    return this_cluster(here, run.train.precision, topology.world_size)


def describe(run: RunConfig, model: GitModel, planned: Plan, data: Sequence[tuple[str, str]]) -> str:
    """The resolved tree, parameters by part, the shape of a step, the data and the plan, without building weights."""
    own = planned.own
    rows = [
        *((name, f"{count:,}") for name, count in parameter_counts(model)),
        ("tensor-parallel ranks", str(own.setting.tp)),
        ("data-parallel ranks", str(planned.cluster.world_size // own.setting.tp)),
        ("ZeRO stage", str(own.setting.stage)),
        ("micro-batches per step and rank", str(own.accumulation)),
        ("images in the whole run", f"{run.train.steps * run.train.global_batch:,}"),
        *data,
    ]
    texts = [run.to_yaml(), format_table(rows, ("parameters and plan", "value")), "", describe_plan(planned)]
    if run.parallel.tp > 1:
        texts += ["", describe_splits(model, run.parallel, splits_of(model, run.parallel))]
    return "\n".join(texts)
