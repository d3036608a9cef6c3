"""The search against trying everything."""

from __future__ import annotations

import itertools

import pytest

from git_scale.config import RunConfig
from git_scale.errors import ConfigError
from git_scale.planning import Cluster, Option, Setting
from git_scale.planning.options import weigh
from git_scale.planning.search import best_of_each, fitting_options, nearest
from git_scale.recipes import adjusted


@pytest.fixture
def options(small_run: RunConfig, four_gpus: Cluster) -> list[Option]:
    return fitting_options(small_run, {}, four_gpus)


def test_it_finds_all_that_fit_and_nothing_else(
    small_run: RunConfig, four_gpus: Cluster, options: list[Option]
) -> None:
    fitting = set()
    for tp, stage, power, checkpointing in itertools.product((1, 2, 4), range(1, 4), range(6), (False, True)):
        setting = Setting(tp, stage, 2**power, checkpointing)
        if small_run.train.global_batch % (setting.micro_batch * 4 // tp):
            continue
        try:
            option = weigh(small_run, {}, four_gpus, setting)
        except ConfigError:
            assert tp > 1  # three heads of the encoder
            continue
        if option.memory.total <= four_gpus.comfortable:
            fitting.add(setting)
    assert {option.setting for option in options} == fitting
    assert fitting


def test_less_memory_leaves_fewer(small_run: RunConfig, four_gpus: Cluster, options: list[Option]) -> None:
    totals = sorted(option.memory.total for option in options)
    middle = totals[len(totals) // 2]
    small = Cluster(**four_gpus.__dict__ | {"memory": round((middle + 3 * 2**29) / 0.9) + 100})
    assert small.comfortable >= middle
    found = fitting_options(small_run, {}, small)
    assert {option.setting for option in found} == {
        option.setting for option in options if option.memory.total <= small.comfortable
    }


def test_fastest_first_and_of_equals_the_simplest(options: list[Option]) -> None:
    assert options[0].time.total < 1.01 * min(option.time.total for option in options)
    for earlier, later in itertools.pairwise(options):
        assert earlier.time.total < 1.0101 * later.time.total
    best = best_of_each(options)
    families = [(o.setting.tp, o.setting.stage, o.setting.checkpointing) for o in best]
    assert len(set(families)) == len(families)
    assert best[0] is options[0]


def test_the_nearest_differ_least(options: list[Option]) -> None:
    own = options[len(options) // 2].setting
    first, second, *_ = nearest(options, own, count=3)
    assert first.setting == own
    changed = [a != b for a, b in zip(vars(second.setting).values(), vars(own).values(), strict=True)]
    assert sum(changed) == 1


def test_pictures_of_their_own_shape_come_one_by_one(small_run: RunConfig, four_gpus: Cluster) -> None:
    takes_any = "model.encoder.options={depth: 2, dynamic_img_size: true}"
    fit = adjusted(small_run, ["data.resize=fit", "train.micro_batch=1", takes_any])
    assert {option.setting.micro_batch for option in fitting_options(fit, {}, four_gpus)} == {1}


def test_what_compiled_blocks_do_not_go_with_is_not_offered(
    small_run: RunConfig, four_gpus: Cluster, options: list[Option]
) -> None:
    found = fitting_options(adjusted(small_run, ["train.compile=true"]), {}, four_gpus)
    assert {option.setting for option in found} == {
        option.setting for option in options if option.setting.tp == 1 and option.setting.stage < 3
    }


def test_under_sequence_parallelism_a_group_divides_the_pictures(
    small_run: RunConfig, four_gpus: Cluster
) -> None:
    run = adjusted(small_run, ["model.encoder.options.num_heads=4", "parallel.sequence=true"])
    settings = {option.setting for option in fitting_options(run, {}, four_gpus)}
    assert {(setting.tp, setting.micro_batch) for setting in settings if setting.micro_batch < 8} == {
        (1, 1), (1, 2), (1, 4), (2, 2), (2, 4), (4, 4)
    }  # fmt: skip
