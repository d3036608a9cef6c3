"""What every training tool does once its arguments are read: a run, or a dry one."""

from __future__ import annotations

import argparse
import logging
import os
from typing import Any

from git_scale.config import RunConfig, check_world
from git_scale.errors import ConfigError
from git_scale.exit import exit_within
from git_scale.objectives.training_loss import check_objectives
from git_scale.parallel.collectives import first_rank_first
from git_scale.parallel.ds_config import read_ds_config
from git_scale.parallel.topology import Topology, topology_from
from git_scale.planning.cluster import Cluster, this_cluster
from git_scale.planning.disk import checkpoint_space, describe_space, refuse_if_disk_too_small
from git_scale.planning.plan import plan, refuse_if_memory_too_small
from git_scale.planning.report import describe_plan
from git_scale.processes import end_with, launcher_processes
from git_scale.recipes import draft_run
from git_scale.stop import Stopped, StopRequest
from git_scale.training.dry_run import dry_run
from git_scale.training.init_model import inherited_from
from git_scale.training.out_of_memory import OutOfMemory, explain, in_phase
from git_scale.training.outcome import RunOutcome
from git_scale.training.preflight import ProblemList, check_inputs

log = logging.getLogger(__name__)

EXIT_S = 60.0
"""To close what is open once a run has ended: nothing of its results hangs on that."""


def run_training(args: argparse.Namespace, from_checkpoint: bool = False) -> int:
    """Trains as `args` say; returns the exit code. Raises UserError, the same on all ranks.

    from_checkpoint: a run without `init_from` is refused.
    """
    here = topology_from(os.environ)
    if here.is_launched:
        end_with(launcher_processes())
    logging.basicConfig(
        level=logging.INFO if here.is_writer else logging.ERROR,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
    )
    planned = _planned_topology(args)
    run, found = draft_run(args.config, args.overrides, inherited_from)
    problems = ProblemList(found)
    if from_checkpoint and run.init_from is None:
        found.append("init_from is not set: fine-tuning starts from a checkpoint; set init_from=DIR")
    topology = problems.of(lambda: (planned or here).with_tp(run.parallel.tp))
    ds_config = problems.of(lambda: read_ds_config(args.ds_config))
    if topology is not None:
        problems.of(lambda: check_world(run, topology.dp))
        problems.of(lambda: check_objectives(run, topology.dp))
    inputs = ProblemList(list(found))
    if planned is None:  # a plan for other machines needs nothing of this one
        check_inputs(run, inputs)
    if found or topology is None or ds_config is None:  # there is no run to plan or to start
        raise ConfigError(inputs.found)
    if args.dry_run:
        text = dry_run(run, ds_config, topology, args.world_size is not None, inputs)
        if text and here.is_writer:
            print(text)  # noqa: T201
    inputs.raise_all()
    if args.dry_run:
        return 0
    try:
        return _train(run, ds_config, topology)
    except Stopped:
        log.warning("stopped before the first step: the same command starts again")
        return RunOutcome.STOPPED


def _train(run: RunConfig, ds_config: dict[str, Any], topology: Topology) -> int:
    with StopRequest() as stop_request:
        # Imported here: a dry run needs no DeepSpeed, whose import takes seconds.
        from git_scale.parallel.engine import start_processes, stop_processes
        from git_scale.training.build import build_trainer

        device = start_processes(topology)
        cluster = this_cluster(device, run.train.precision, topology.world_size)
        first_rank_first(topology, lambda: announce(run, ds_config, cluster) if topology.is_writer else None)
        try:
            with in_phase("the start"):
                trainer = build_trainer(run, ds_config, topology, device)
            outcome = trainer.fit(stop_request)
        except OutOfMemory as failure:  # of this rank alone: the others lose it, and end
            log.error("%s", explain(failure, topology.global_rank, run, ds_config, cluster))
            return RunOutcome.REFUSED
        with exit_within(EXIT_S, outcome):  # a disk or a rank that does not answer holds nobody back
            trainer.writer.close()
            stop_processes()  # not after an exception: it would wait for ranks that wait for this one
    return int(outcome)


def announce(run: RunConfig, ds_config: dict[str, Any], cluster: Cluster) -> None:
    """Logs what the run needs and takes; raises ConfigError, with the nearest settings, when that is too much."""
    planned = plan(run, ds_config, cluster)
    space = checkpoint_space(run)
    log.info("%s", describe_plan(planned))
    log.log(logging.INFO if space.holds_all else logging.WARNING, "%s", describe_space(space))
    refuse_if_memory_too_small(planned)
    refuse_if_disk_too_small(space)


def _planned_topology(args: argparse.Namespace) -> Topology | None:
    """Of a dry run for a given number of processes."""
    if args.world_size is None:
        return None
    if not args.dry_run:
        raise ConfigError(
            ["--world-size goes with --dry-run: the launcher sets the number of processes of a run"]
        )
    return Topology(world_size=args.world_size)
