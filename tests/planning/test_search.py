"""The search against trying everything."""

from __future__ import annotations

import itertools

import pytest

from git_scale.config import RunConfig
from git_scale.errors import ConfigError
from git_scale.planning.cluster import Cluster
from git_scale.planning.estimate import SettingEstimate, TunableSetting, estimate_setting
from git_scale.planning.search import best_micro_batches, fitting_settings, nearest
from git_scale.recipes import adjusted


@pytest.fixture
def estimates(small_run: RunConfig, four_gpus: Cluster) -> list[SettingEstimate]:
    return fitting_settings(small_run, {}, four_gpus)


def test_it_finds_all_that_fit_and_nothing_else(
    small_run: RunConfig, four_gpus: Cluster, estimates: list[SettingEstimate]
) -> None:
    fitting = set()
    for tp, stage, power, checkpointing in itertools.product((1, 2, 4), range(1, 4), range(6), (False, True)):
        setting = TunableSetting(tp, stage, 2**power, checkpointing)
        if small_run.train.global_batch % (setting.micro_batch * 4 // tp):
            continue
        try:
            estimate = estimate_setting(small_run, {}, four_gpus, setting)
        except ConfigError:
            assert tp > 1  # three heads of the encoder
            continue
        if estimate.memory.total <= four_gpus.usable_with_margin:
            fitting.add(setting)
    assert {estimate.setting for estimate in estimates} == fitting
    assert fitting


def test_less_memory_leaves_fewer(
    small_run: RunConfig, four_gpus: Cluster, estimates: list[SettingEstimate]
) -> None:
    totals = sorted(estimate.memory.total for estimate in estimates)
    middle = totals[len(totals) // 2]
    small = Cluster(**four_gpus.__dict__ | {"memory": round((middle + 3 * 2**29) / 0.9) + 100})
    assert small.usable_with_margin >= middle
    found = fitting_settings(small_run, {}, small)
    assert {estimate.setting for estimate in found} == {
        estimate.setting for estimate in estimates if estimate.memory.total <= small.usable_with_margin
    }


def test_fastest_first_and_of_equals_the_simplest(estimates: list[SettingEstimate]) -> None:
    assert estimates[0].time.total < 1.01 * min(estimate.time.total for estimate in estimates)
    for earlier, later in itertools.pairwise(estimates):
        assert earlier.time.total < 1.0101 * later.time.total
    best = best_micro_batches(estimates)
    families = [(o.setting.tp, o.setting.stage, o.setting.checkpointing) for o in best]
    assert len(set(families)) == len(families)
    assert best[0] is estimates[0]


def test_the_nearest_differ_least(estimates: list[SettingEstimate]) -> None:
    own = estimates[len(estimates) // 2].setting
    first, second, *_ = nearest(estimates, own)
    assert first.setting == own
    changed = [a != b for a, b in zip(vars(second.setting).values(), vars(own).values(), strict=True)]
    assert sum(changed) == 1


def test_images_of_their_own_shape_come_one_by_one(small_run: RunConfig, four_gpus: Cluster) -> None:
    takes_any = "model.encoder.options={depth: 2, dynamic_img_size: true}"
    fit = adjusted(small_run, ["data.resize=fit", "train.micro_batch=1", takes_any])
    assert {estimate.setting.micro_batch for estimate in fitting_settings(fit, {}, four_gpus)} == {1}


def test_what_compiled_blocks_do_not_go_with_is_not_offered(
    small_run: RunConfig, four_gpus: Cluster, estimates: list[SettingEstimate]
) -> None:
    found = fitting_settings(adjusted(small_run, ["train.compile=true"]), {}, four_gpus)
    assert {estimate.setting for estimate in found} == {
        estimate.setting for estimate in estimates if estimate.setting.tp == 1 and estimate.setting.stage < 3
    }


def test_under_sequence_parallelism_a_group_divides_the_images(
    small_run: RunConfig, four_gpus: Cluster
) -> None:
    run = adjusted(small_run, ["model.encoder.options.num_heads=4", "parallel.sequence=true"])
    settings = {estimate.setting for estimate in fitting_settings(run, {}, four_gpus)}
    assert {(setting.tp, setting.micro_batch) for setting in settings if setting.micro_batch < 8} == {
        (1, 1), (1, 2), (1, 4), (2, 2), (2, 4), (4, 4)
    }  # fmt: skip
