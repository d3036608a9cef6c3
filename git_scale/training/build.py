"""From a resolved recipe to a trainer: a list of nouns."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from git_scale.checkpoint.layout import RunProgress
from git_scale.config import RunConfig, check_world
from git_scale.data.heldout import heldout_data, named
from git_scale.data.loader import build_train_loader
from git_scale.data.mixture import Mixture, PerSourceTask, tasks_of, training_sources
from git_scale.data.quarantine import FILE as QUARANTINE
from git_scale.data.quarantine import Quarantine
from git_scale.data.store import SampleStore
from git_scale.data.tokenizer import Tokenizer
from git_scale.evaluation.evaluator import Evaluator
from git_scale.models.compiled import compile_blocks
from git_scale.monitoring.meters import Meters
from git_scale.monitoring.peak import peak_flops
from git_scale.monitoring.writers import build_writers, read_evaluations
from git_scale.objectives.examples import training_examples
from git_scale.objectives.training_loss import check_objectives
from git_scale.parallel.collectives import first_rank_first, shared_over_tp, together
from git_scale.parallel.comm import WORLD
from git_scale.parallel.ds_config import check_ds_config
from git_scale.parallel.engine import Engine
from git_scale.parallel.materialise import materialise_model
from git_scale.parallel.shared_indexing import open_store_together
from git_scale.parallel.topology import Topology
from git_scale.planning.model_flops import ModelFlops
from git_scale.tasks import build_task
from git_scale.tasks.task import Task
from git_scale.training.checkpoints import Checkpoints, random_seed
from git_scale.training.continuation import check_continuation
from git_scale.training.evaluations import Evaluations
from git_scale.training.init_model import deferred_model, encoder_learns, first_values, parameters_in_words
from git_scale.training.optimizer import parameter_groups
from git_scale.training.preflight import (
    check_best,
    check_data,
    check_image_sizes,
    load_fitting_tokenizer,
    report_sources,
    training_shapes,
)
from git_scale.training.run_folder import as_begun, claim_run_folder, keep_tokenizer, renew_recipe
from git_scale.training.trainer import Trainer

log = logging.getLogger(__name__)


def build_trainer(
    run: RunConfig, ds_config: dict[str, Any], topology: Topology, device: torch.device
) -> Trainer:
    """A trainer at the run's newest checkpoint, or at its start. Collective.

    Raises UserError, the same on all ranks, for everything that is wrong before the first step; Stopped, on all
    ranks, when any was asked to stop.
    """
    check_world(run, topology.dp)
    check_objectives(run, topology.dp)
    check_ds_config(ds_config, run, topology.world_size, device.type == "cuda")
    check_best(run)
    together(lambda: check_continuation(run))
    run = as_begun(run)
    tokenizer = together(lambda: load_fitting_tokenizer(run))
    tasks = {name: build_task(name, run, tokenizer) for name in tasks_of(run.data)}
    stores = [open_store_together(topology, source.path) for source in training_sources(run.data).values()]
    heldout = [open_store_together(topology, one.path) for one in heldout_data(run.data).values()]
    first_rank_first(topology, lambda: check_data(run, stores, heldout))
    train = Mixture(run.data, stores)
    first_rank_first(topology, lambda: report_sources(run, train, tokenizer) if topology.is_writer else None)
    lease = first_rank_first(topology, lambda: claim_run_folder(run) if topology.is_writer else None)
    tokenizer_path = first_rank_first(  # the writer copies it from there
        topology, lambda: keep_tokenizer(run) if topology.is_writer else tokenizer.path
    )

    deferred = deferred_model(run)
    check_image_sizes(run, deferred.module.encoder)
    log.info("parameters: %s", parameters_in_words(deferred.module))
    values = first_rank_first(topology, lambda: first_values(deferred, run))
    materialised = materialise_model(deferred, run, values, ds_config, topology, device)
    if run.train.compile:
        compile_blocks(materialised.model)
    groups = parameter_groups(materialised.model, materialised.shapes, run.optimizer)
    engine = Engine(materialised, groups, run, ds_config, topology, device)
    checkpoints = Checkpoints(run, tokenizer_path, engine, topology)
    peak = peak_flops(device, run.train.precision)
    meters = Meters(run.train.steps, len(train), topology.world_size, peak, device)
    flops = ModelFlops(run.model, topology.dp, encoder_learns(materialised.model))
    for shape in training_shapes(run):
        flops.encoder_pass(*shape)  # an error now, not at the first step that draws this size
    evaluators = _evaluators(run, heldout, tasks, topology)

    # Last, because it sets the random state: what is built above may draw from it, what follows does not.
    torch.manual_seed(random_seed(run.seed, topology, step=0))
    progress = first_progress(train, tokenizer, topology, engine)
    progress = checkpoints.resume(progress) or progress
    first_rank_first(topology, lambda: renew_recipe(run) if topology.is_writer else None)
    meters.load_state_dict({"samples": progress.samples, "tokens": progress.tokens})
    learned = PerSourceTask([tasks[str(source.task)] for source in train.sources])
    place = topology.dp_rank, topology.dp, progress.samples
    order, quarantine = train.order(run.seed), _quarantine(run, "train")
    examples = training_examples(run, tokenizer)
    batches = shared_over_tp(build_train_loader(run, train, learned, *place, quarantine, order, examples))
    writer = build_writers(Path(run.run_dir), run.train.steps, topology.is_writer, progress.step)
    past = WORLD.from_first(read_evaluations(Path(run.run_dir)) if topology.is_writer else [])
    evaluations = Evaluations(evaluators, past)
    return Trainer(
        run, engine, batches, checkpoints, evaluations, writer, meters, flops, progress, lease, train
    )


def _evaluators(
    run: RunConfig, heldout: Sequence[SampleStore], tasks: Mapping[str, Task], topology: Topology
) -> dict[str, Evaluator]:
    """`heldout`: the samples of heldout_data."""
    given = heldout_data(run.data).items()
    return {
        one.name: Evaluator(
            run, store, tasks[one.task], topology, _quarantine(run, named("heldout", one.name)), key
        )
        for (key, one), store in zip(given, heldout, strict=True)
    }


def _quarantine(run: RunConfig, data: str) -> Quarantine:
    """That of an earlier start goes on."""
    quarantine = Quarantine(Path(run.run_dir) / QUARANTINE, data)
    if quarantine:
        log.warning(
            "data.%s: not read, because %s says so: %s", data, quarantine.where, ", ".join(quarantine.held)
        )
    return quarantine


def first_progress(
    store: SampleStore, tokenizer: Tokenizer, topology: Topology, engine: Engine
) -> RunProgress:
    return RunProgress(
        step=0,
        samples=0,
        tokens=0,
        skipped_steps=0,
        skipped_samples=0,
        data_fingerprint=store.fingerprint,
        tokenizer_fingerprint=tokenizer.fingerprint,
        world_size=topology.world_size,
        zero_stage=engine.stage,
        tp=topology.tp,
    )
