"""Seconds of a step by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from git_scale.planning import Cluster
from git_scale.planning.activations import Timeline
from git_scale.planning.memory import Load
from git_scale.planning.states import Holding
from git_scale.planning.step_time import step_time
from git_scale.planning.zero import read_zero

P = 1_000_000_000
NONE = torch.zeros(1, dtype=torch.long)
TIMELINE = Timeline(NONE, NONE, NONE, NONE, summed=1_000_000, parameters=(), flops=10**12)
LOAD = Load("cuda", micro_batch=8, accumulation=3, checkpointing=False, inputs=0)
NODES = Cluster(
    device="Toy",
    kind="cuda",
    world_size=32,
    per_node=8,
    memory=0,
    peak=1e15,
    intra=400e9,
    inter=25e9,
    efficiency=0.5,
)


def holding(dp: int) -> Holding:
    return Holding(2, dp, P, P, P, P, P, P, P, lingering=0)


def seconds(stage: int, tp: int, cluster: Cluster = NODES, **given: float) -> tuple[float, float, float]:
    zero = read_zero({"zero_optimization": {"stage": stage, "overlap_comm": False, **given}})
    time = step_time(holding(cluster.world_size // tp), zero, TIMELINE, LOAD, cluster, tp)
    assert time.total == time.compute + time.tensor + time.data
    return time.compute, time.tensor, time.data


def test_compute() -> None:
    assert seconds(0, 1)[0] == pytest.approx(3 * 8 * 1e12 / 0.5e15)


def test_a_group_sums_in_a_ring_within_the_node() -> None:
    assert seconds(0, 4)[1] == pytest.approx(3 * 2 * 8 * 1e6 * (3 / 4) / 400e9)
    assert seconds(0, 1)[1] == 0


@pytest.mark.parametrize(
    ("stage", "bytes_per_micro", "bytes_per_step"),
    [
        (0, 0, 2 * 2 * P),  # all-reduce
        (1, 0, 2 * 2 * P + 2 * P),  # and weights gathered
        (2, 2 * 2 * P, 2 * P),
        (3, 3 * 2 * P, 0),  # gathered twice, scattered once
    ],
)
def test_bytes_over_the_network(stage: int, bytes_per_micro: int, bytes_per_step: int) -> None:
    link = 8 * 25e9  # all adapters of a node feed its ranks
    expected = (3 * bytes_per_micro + bytes_per_step) * 31 / 32 / link
    assert seconds(stage, 1, stage3_max_reuse_distance=0)[2] == pytest.approx(expected)


def test_groups_share_the_adapters_and_one_node_needs_none() -> None:
    assert seconds(0, 4)[2] == pytest.approx(2 * 2 * P * 7 / 8 / (2 * 25e9))
    alone = replace(NODES, world_size=8)
    assert seconds(0, 1, alone)[2] == pytest.approx(2 * 2 * P * 7 / 8 / 400e9)


def test_what_is_used_again_soon_is_not_gathered_twice() -> None:
    full, less = (seconds(3, 1, stage3_max_reuse_distance=distance)[2] for distance in (0, P))
    assert less / full == pytest.approx((2 * 2 * P - P + 2 * P) / (3 * 2 * P))


def test_overlap_hides_what_is_shorter_than_the_computation() -> None:
    open_, hidden = (
        step_time(
            holding(32),
            read_zero(
                {"zero_optimization": {"stage": 3, "overlap_comm": on, "stage3_max_reuse_distance": 0}}
            ),
            TIMELINE,
            LOAD,
            NODES,
            tp=1,
        )
        for on in (False, True)
    )
    assert open_.data > open_.compute  # there is more than computation can hide
    assert hidden.data == pytest.approx(open_.data - open_.compute)
