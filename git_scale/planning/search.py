"""A search over the settings of a run that fit a cluster, best first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

from git_scale.config import RunConfig
from git_scale.errors import ConfigError
from git_scale.planning.cluster import Cluster
from git_scale.planning.estimate import SettingEstimate, TunableSetting, estimate_setting


def fitting_settings(run: RunConfig, ds_config: dict[str, Any], cluster: Cluster) -> list[SettingEstimate]:
    """tp x ZeRO stage x micro_batch x checkpointing that leave a margin of memory, the fastest first.

    Step times within one percent count as equal; then less splitting, a lower stage, no checkpointing and a larger
    micro_batch come first.
    """
    return _ranked(list(_estimates(run, ds_config, cluster)))


def best_micro_batches(estimates: list[SettingEstimate]) -> list[SettingEstimate]:
    """Of estimates in their order, the first of each tp, stage and checkpointing."""
    best: dict[tuple[int, int, bool], SettingEstimate] = {}
    for estimate in estimates:
        setting = estimate.setting
        best.setdefault((setting.tp, setting.stage, setting.checkpointing), estimate)
    return list(best.values())


def nearest(estimates: list[SettingEstimate], own: TunableSetting) -> list[SettingEstimate]:
    """The three that change a run's own setting least, for a message."""

    def change(estimate: SettingEstimate) -> tuple[float, float]:
        return _distance(estimate.setting, own), estimate.time.total

    return sorted(estimates, key=change)[:3]


def _estimates(run: RunConfig, ds_config: dict[str, Any], cluster: Cluster) -> Iterator[SettingEstimate]:
    def fits(estimate: SettingEstimate) -> bool:
        return estimate.memory.total <= cluster.usable_with_margin

    for tp in _divisors(math.gcd(cluster.per_node, cluster.world_size)):
        dp = cluster.world_size // tp
        if run.train.global_batch % dp:
            continue
        if tp > 1 and (run.train.compile or not _splits(run, ds_config, cluster, tp)):
            continue
        sizes = _micro_batches(run, dp, tp)
        for checkpointing in (False, True):
            for stage in _stages(run):
                settings = (TunableSetting(tp, stage, size, checkpointing) for size in sizes)
                estimates = (estimate_setting(run, ds_config, cluster, setting) for setting in settings)
                yield from itertools.takewhile(fits, estimates)  # a larger micro_batch needs more


def _stages(run: RunConfig) -> range:
    """bf16 has master weights, and with them at least stage 1; stage 3 takes weights out of compiled blocks."""
    return range(int(run.train.precision == "bf16"), 3 if run.train.compile else 4)


def _splits(run: RunConfig, ds_config: dict[str, Any], cluster: Cluster, tp: int) -> bool:
    try:
        estimate_setting(run, ds_config, cluster, TunableSetting(tp, 0, 1, False))
    except ConfigError:
        return False
    return True


def _micro_batches(run: RunConfig, dp: int, tp: int) -> list[int]:
    """Powers of two, the run's own size, and the largest one, that divide a rank's share of the global batch and,
    under sequence parallelism, are divided by tp."""
    share = run.train.global_batch // dp
    powers = {2**power for power in range(share.bit_length())}
    sizes = {1} if run.data.resize == "fit" else powers | {run.train.micro_batch, share}
    step = tp if run.parallel.sequence else 1
    return sorted(size for size in sizes if share % size == 0 and size % step == 0)


def _divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def _ranked(estimates: list[SettingEstimate]) -> list[SettingEstimate]:
    ranked: list[SettingEstimate] = []
    left = sorted(estimates, key=lambda estimate: estimate.time.total)
    while left:
        equal = [estimate for estimate in left if estimate.time.total <= 1.01 * left[0].time.total]
        left = left[len(equal) :]
        ranked += sorted(equal, key=_simplicity)
    return ranked


def _simplicity(estimate: SettingEstimate) -> tuple[int, int, bool, int]:
    setting = estimate.setting
    return setting.tp, setting.stage, setting.checkpointing, -setting.micro_batch


def _distance(setting: TunableSetting, own: TunableSetting) -> float:
    """Halvings of the micro_batch and of the model's share, and switches."""
    return (
        abs(math.log2(setting.micro_batch / own.micro_batch))
        + 2 * abs(math.log2(setting.tp / own.tp))
        + abs(setting.stage - own.stage)
        + (setting.checkpointing != own.checkpointing)
    )
