"""The plan of a run before its launch: does it fit, how long does it take, what would be better."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from git_scale.config import RunConfig, check_world
from git_scale.errors import ConfigError
from git_scale.formatting import GIB
from git_scale.parallel.topology import Topology
from git_scale.planning.cluster import LIBRARY_BYTES, Cluster
from git_scale.planning.estimate import (
    SettingEstimate,
    estimate_setting,
    flops_per_sample,
    setting_of,
)
from git_scale.planning.search import best_micro_batches, fitting_settings, nearest


@dataclass(frozen=True)
class Plan:
    """What a run takes on a cluster; other settings are searched when asked for."""

    run: RunConfig
    ds_config: dict[str, Any]
    cluster: Cluster
    own: SettingEstimate
    switched: SettingEstimate
    """The run's own setting with checkpointing if it has none, without if it has."""
    flops_per_sample: int
    """Both passes take so many, without recomputation."""

    @property
    def fits(self) -> bool:
        return self.own.memory.total <= self.cluster.usable

    @property
    def is_tight(self) -> bool:
        return self.own.memory.total > self.cluster.usable_with_margin

    @cached_property
    def fitting(self) -> list[SettingEstimate]:
        """All settings that fit with a margin, the fastest first."""
        return fitting_settings(self.run, self.ds_config, self.cluster)

    @property
    def best(self) -> list[SettingEstimate]:
        """Of these, the best of each tp, stage and checkpointing."""
        return best_micro_batches(self.fitting)

    def utilisation(self, estimate: SettingEstimate) -> float:
        """Model FLOPs per second over the peak."""
        done = self.flops_per_sample * self.run.train.global_batch / estimate.time.total
        return done / (self.cluster.peak * self.cluster.world_size)

    def run_seconds(self, estimate: SettingEstimate) -> float:
        return estimate.time.total * self.run.train.steps


def plan(run: RunConfig, ds_config: dict[str, Any], cluster: Cluster) -> Plan:
    """Raises ConfigError when the batch or the model does not divide over the cluster, or images do not fit it."""
    topology = Topology(world_size=cluster.world_size).with_tp(run.parallel.tp)
    check_world(run, topology.dp)
    flops = flops_per_sample(run)
    own = setting_of(run, ds_config)
    switched = dataclasses.replace(own, checkpointing=not own.checkpointing)
    return Plan(
        run,
        ds_config,
        cluster,
        own=estimate_setting(run, ds_config, cluster, own),
        switched=estimate_setting(run, ds_config, cluster, switched),
        flops_per_sample=flops,
    )


def with_dividing_micro_batch(run: RunConfig, cluster: Cluster) -> RunConfig:
    """The run with the largest train.micro_batch, up to its own, that makes up the global batch on this cluster.

    Raises ConfigError when none does.
    """
    dp = Topology(world_size=cluster.world_size).with_tp(run.parallel.tp).dp
    share, rest = divmod(run.train.global_batch, dp)
    if rest:
        check_world(run, dp)
    step = run.parallel.tp if run.parallel.sequence else 1
    most = min(share, run.train.micro_batch)
    size = max((size for size in range(step, most + 1, step) if share % size == 0), default=None)
    if size is None:
        raise ConfigError(
            [
                f"no train.micro_batch up to {most} is divided by parallel.tp={step} and divides the {share} images"
                f" of train.global_batch={run.train.global_batch} on a rank: set parallel.sequence=false"
            ]
        )
    return run.model_copy(update={"train": run.train.model_copy(update={"micro_batch": size})})


def refuse_if_memory_too_small(plan: Plan) -> None:
    """Raises ConfigError, with the three nearest settings that fit, when the run's own cannot."""
    if plan.fits:
        return
    memory, cluster = plan.own.memory, plan.cluster
    close = nearest(plan.fitting, plan.own.setting)
    if close:
        remedy = "settings near it that fit:\n" + "\n".join(
            f"      {estimate.setting} ({estimate.memory.total / GIB:.1f} GiB)" for estimate in close
        )
    else:
        remedy = (
            "no setting of tp, ZeRO stage, micro_batch and checkpointing fits: take more or larger devices"
        )
    raise ConfigError(
        [
            f"{plan.own.setting} needs {memory.total / GIB:.1f} GiB per device in {memory.phase}, of"
            f" {cluster.device}'s {cluster.memory / GIB:.1f} GiB less {LIBRARY_BYTES[cluster.kind] / GIB:.1f} GiB for"
            f" libraries; {remedy}"
        ]
    )
