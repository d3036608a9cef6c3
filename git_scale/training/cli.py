"""The command line that every training tool shares: recipe, DeepSpeed JSON, overrides, --dry-run."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import Any

import torch

from git_scale.config import RunConfig, check_world
from git_scale.errors import ConfigError, UserError
from git_scale.models.git import GitModel, count_parameters
from git_scale.monitoring.tables import format_table
from git_scale.parallel.ds_config import read_ds_config, zero_stage
from git_scale.parallel.topology import Topology, topology_from
from git_scale.recipes import load_run
from git_scale.training.start import freeze, settled_by

USAGE_ERROR = 2


def parse_training_arguments(description: str, argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="RECIPE", help="a recipe's name, or a YAML file")
    parser.add_argument("--ds_config", metavar="JSON", help="DeepSpeed settings; none: ZeRO stage 0")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved run and exit")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser.parse_intermixed_args(argv)


def run_training(args: argparse.Namespace, from_checkpoint: bool = False) -> int:
    """Trains as `args` say; returns the exit code. User errors become one message on stderr and code 2.

    from_checkpoint: a run without `init_from` is refused.
    """
    topology = Topology()  # until the launcher's variables are read, every process speaks for itself
    try:
        topology = topology_from(os.environ)
        run = load_run(args.config, args.overrides, settled_by)
        if from_checkpoint and run.init_from is None:
            raise ConfigError(
                ["init_from is not set: fine-tuning starts from a checkpoint; set init_from=DIR"]
            )
        topology = topology.with_tp(run.parallel.tp)
        ds_config = read_ds_config(args.ds_config)
        check_world(run, topology.dp)
        if args.dry_run:
            print(describe(run, zero_stage(ds_config), topology.dp))  # noqa: T201
            return 0
        return _train(run, ds_config, topology)
    except UserError as error:
        if topology.is_writer:  # the others raise the same
            print(error, file=sys.stderr)  # noqa: T201
        return USAGE_ERROR


def _train(run: RunConfig, ds_config: dict[str, Any], topology: Topology) -> int:
    # Imported here: a dry run needs no DeepSpeed, whose import takes seconds.
    from git_scale.parallel.engine import start_processes, stop_processes
    from git_scale.training.build import build_trainer
    from git_scale.training.signals import StopRequest

    logging.basicConfig(
        level=logging.INFO if topology.is_writer else logging.ERROR,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
    )
    with StopRequest() as stop_request:  # from here on: a signal during the build ends in a checkpoint, too
        trainer = build_trainer(run, ds_config, topology, start_processes(topology))
        outcome = trainer.fit(stop_request)
    trainer.writer.close()
    stop_processes()  # not after an exception: it would wait for ranks that wait for this one
    return int(outcome)


def describe(run: RunConfig, stage: int, dp: int) -> str:
    """The resolved tree, parameters by part and the shape of a step, without building weights."""
    with torch.device("meta"):
        model = GitModel(run.model)
    freeze(model, run.train.freeze)
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    parts = [(name, f"{count_parameters(part):,}") for name, part in model.named_children()]
    rows = [
        *parts,
        ("all, unique", f"{count_parameters(model):,}"),
        ("of these learn", f"{learning:,}"),
        ("data-parallel ranks", str(dp)),
        ("ZeRO stage", str(stage)),
        ("micro-batches per step and rank", str(run.accumulation(dp))),
        ("images in the whole run", f"{run.train.steps * run.train.global_batch:,}"),
    ]
    return f"{run.to_yaml()}\n{format_table(rows, ('parameters and plan', 'value'))}"
