"""Plan a run before its launch: memory per GPU, step time, days, and the best settings for a cluster.

    python tools/plan.py --config git2 --nodes 16 --gpus-per-node 8
    python tools/plan.py --config git_large --gpu A100 --memory-gib 40 --ds_config ds_configs/zero2.json \\
        train.micro_batch=64
    python tools/plan.py --config git2 --nodes 8 --inter-gbps 200 --efficiency 0.4 --json plan.json

Needs no GPU: the model runs on torch's meta device. Times are a model; docs/planning.md says what is exact and what
is estimated. Exit codes: 0 a plan, 2 wrong usage, or nothing fits.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

from git_scale.console import output_file, path, positive, share, tool, whole
from git_scale.files import write_text
from git_scale.parallel.ds_config import read_ds_config
from git_scale.planning.assumptions import EFFICIENCY
from git_scale.recipes import load_run

if TYPE_CHECKING:
    from git_scale.planning.estimate import SettingEstimate
    from git_scale.planning.plan import Plan

SHOWN = 8


@tool
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    # What takes torch along is imported after the arguments: neither --help nor a wrong one waits for it.
    from git_scale.planning.cluster import accelerator_named, cluster_of
    from git_scale.planning.disk import checkpoint_space, describe_space
    from git_scale.planning.plan import plan, refuse_if_memory_too_small, with_dividing_micro_batch
    from git_scale.planning.report import describe_plan, estimates_table
    from git_scale.training.init_model import inherited_from

    asked = load_run(args.config, args.overrides, inherited_from)
    devices = args.nodes * args.gpus_per_node
    listed = cluster_of(accelerator_named(args.gpu), asked.train.precision, devices, args.gpus_per_node)
    cluster = dataclasses.replace(listed, **given_instead(args))
    run = with_dividing_micro_batch(asked, cluster)
    planned = plan(run, read_ds_config(args.ds_config), cluster)
    if not planned.fitting:
        refuse_if_memory_too_small(planned)
    if run != asked:
        print(f"train.micro_batch={run.train.micro_batch}: {asked.train.micro_batch} does not divide\n")
    print(f"{describe_plan(planned)}\n{describe_space(checkpoint_space(run))}\n")
    print(estimates_table(planned, shown(planned)))
    if args.json:
        write_text(args.json, json.dumps(as_tree(planned), indent=1))
    return 0


def given_instead(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line says in the place of the data file's values."""
    given = {
        "memory": args.memory_gib and int(args.memory_gib * 2**30),
        "intra": args.intra_gbps and args.intra_gbps * 1e9 / 8,
        "inter": args.inter_gbps and args.inter_gbps * 1e9 / 8,
        "efficiency": args.efficiency,
    }
    return {name: value for name, value in given.items() if value}


def shown(planned: Plan) -> list[SettingEstimate]:
    """The best ones, and the run's own."""
    best = planned.best[:SHOWN]
    return best if any(estimate.setting == planned.own.setting for estimate in best) else [*best, planned.own]


def as_tree(planned: Plan) -> dict[str, Any]:
    return {
        "cluster": dataclasses.asdict(planned.cluster),
        "flops_per_sample": planned.flops_per_sample,
        "fits": planned.fits,
        "own": estimate_tree(planned, planned.own),
        "best": [estimate_tree(planned, estimate) for estimate in planned.best[:SHOWN]],
    }


def estimate_tree(planned: Plan, estimate: SettingEstimate) -> dict[str, Any]:
    return dataclasses.asdict(estimate) | {
        "memory_total": estimate.memory.total,
        "step_seconds": estimate.time.total,
        "utilisation": planned.utilisation(estimate),
        "run_seconds": planned.run_seconds(estimate),
    }


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="RECIPE", help="a recipe's name, or a YAML file")
    parser.add_argument(
        "--ds_config", type=path, metavar="JSON", help="DeepSpeed settings; none: ZeRO 0, in bf16 1"
    )
    parser.add_argument("--nodes", type=whole(1), default=1)
    parser.add_argument("--gpus-per-node", type=whole(1), default=8, metavar="N", help="(%(default)s)")
    parser.add_argument("--gpu", default="H100", help="a name in accelerators.yaml (%(default)s)")
    parser.add_argument("--memory-gib", type=positive, metavar="GIB", help="of one GPU")
    parser.add_argument("--intra-gbps", type=positive, metavar="GBIT", help="GPU to GPU in a node, one way")
    parser.add_argument("--inter-gbps", type=positive, metavar="GBIT", help="network per GPU, one way")
    parser.add_argument("--efficiency", type=share, help=f"share of the peak while computing ({EFFICIENCY})")
    parser.add_argument(
        "--json", type=output_file, metavar="FILE", help="the plan as numbers: bytes, seconds, FLOPs"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    sys.exit(main())
