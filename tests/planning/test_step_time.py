"""Seconds of a step by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from git_scale.planning.cluster import Cluster
from git_scale.planning.memory import StepShape
from git_scale.planning.partition_sizes import PartitionSizes
from git_scale.planning.profiling import MicroBatchProfile
from git_scale.planning.step_time import Ring, StepTime, step_time
from git_scale.planning.zero_config import read_zero_config

P = 2_000_000_000
G = 2 * P  # bytes of all weights, or of all gradients
NONE = torch.zeros(1, dtype=torch.long)
PROFILE = MicroBatchProfile(
    NONE, NONE, NONE, NONE, tp_bytes=1_000_000, tp_exchanges=50, parameters=(), flops=10**12
)
SHAPE = StepShape("cuda", micro_batch=8, accumulation=3, checkpointing=False, sample_bytes=0)
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
LINK = 8 * 25e9  # all adapters of a node feed its ranks
COMPUTE = 8 * 1e12 / 0.5e15
ONCE = 28 * 1e-6 + 3 * 2.7e-6  # hops of the 32 ranks around the ring of 4 nodes
START = 6.6e-6


def sizes_over(dp: int) -> PartitionSizes:
    return PartitionSizes(
        2, 2, dp, P, P, P, P, P, P, P, gathered_matrices=100, persistent_parameters=70, unreleased=0
    )


def seconds(
    stage: int,
    tp: int = 1,
    cluster: Cluster = NODES,
    shape: StepShape = SHAPE,
    flops: int = 10**12,
    **given: float,
) -> StepTime:
    """Without overlap, and without anything that is used again soon, unless `given`."""
    settings = {"overlap_comm": False, "stage3_max_reuse_distance": 0, **given}
    zero = read_zero_config({"zero_optimization": {"stage": stage, **settings}}, "fp32")
    profile = dataclasses.replace(PROFILE, flops=flops)
    time = step_time(sizes_over(cluster.world_size // tp), zero, profile, shape, cluster, tp)
    assert time.total == time.compute + time.tensor + time.data
    return time


def test_compute() -> None:
    assert seconds(0).compute == pytest.approx(3 * COMPUTE)


def test_a_ring_by_hand() -> None:
    assert Ring(32, 4, LINK).seconds(G, 5) == pytest.approx(5 * (START + ONCE) + G * 31 / 32 / LINK)
    assert Ring(32, 4, LINK).seconds(G, 5, turns=2) == pytest.approx(
        5 * (START + 2 * ONCE) + 2 * G * 31 / 32 / LINK
    )
    assert Ring(1, 1, LINK).seconds(G, 5) == 0


def test_a_group_sums_in_a_ring_within_the_node() -> None:
    each = 50 * (6.6e-6 + 2 * 3e-6) + 2 * 8 * 1e6 * (3 / 4) / 400e9
    assert seconds(0, tp=4).tensor == pytest.approx(3 * each)
    assert seconds(0).tensor == 0


def test_a_group_of_two_nodes_sums_over_the_network() -> None:
    each = 50 * (START + 2 * (14e-6 + 2.7e-6)) + 2 * 8 * 1e6 * (15 / 16) / 25e9
    assert seconds(0, tp=16).tensor == pytest.approx(3 * each)


@pytest.mark.parametrize(
    ("stage", "turns_per_micro", "turns_per_step", "collectives"),
    [
        (0, 0, 2, 4),  # all-reduces of 500 million elements
        (1, 0, 2 + 1, 4 + 4),  # and weights gathered
        (2, 2, 1, 3 * 4 + 4),
        # Weights gathered twice, gradients scattered once. Of the 100 matrices half come in 20 gatherings of 50
        # million elements, until there are as many as may be live; the others one by one. Then 70 small ones.
        (3, 3, 0, 3 * (2 * (20 + 50) + 4) + 70),
    ],
)
def test_bytes_and_collectives_over_the_network(
    stage: int, turns_per_micro: int, turns_per_step: int, collectives: int
) -> None:
    turns = 3 * turns_per_micro + turns_per_step
    hops = {0: 2 * 4, 1: 2 * 4 + 4, 2: 3 * 2 * 4 + 4}.get(stage, collectives)
    expected = turns * G * 31 / 32 / LINK + collectives * START + hops * ONCE
    assert seconds(stage).data == pytest.approx(expected)


@pytest.mark.parametrize(("stage", "further"), [(1, 2), (2, 3 * 2), (3, 3)])
def test_gradients_in_fp32_double_their_traffic_alone(
    monkeypatch: pytest.MonkeyPatch, stage: int, further: int
) -> None:
    """All-reduced once a step (1) or in each of three micro-batches (2), scattered in each (3)."""
    coarse = seconds(stage).data
    narrow = sizes_over
    monkeypatch.setitem(
        globals(), "sizes_over", lambda dp: dataclasses.replace(narrow(dp), bytes_per_gradient=4)
    )
    assert seconds(stage).data - coarse == pytest.approx(further * G * 31 / 32 / LINK)


def test_groups_share_the_adapters_and_one_node_needs_none() -> None:
    between = 2 * G * 7 / 8 / (2 * 25e9) + 4 * (START + 2 * (4 * 1e-6 + 3 * 2.7e-6))
    assert seconds(0, tp=4).data == pytest.approx(between)
    alone = dataclasses.replace(NODES, world_size=8)
    within = 2 * G * 7 / 8 / 400e9 + 4 * (START + 2 * 7e-6)
    assert seconds(0, cluster=alone).data == pytest.approx(within)
    assert seconds(0, cluster=dataclasses.replace(NODES, world_size=1)).data == 0


def test_what_is_used_again_soon_is_not_gathered_twice() -> None:
    full, less = (seconds(3, stage3_max_reuse_distance=distance).data for distance in (0, P))
    gathering = G * 31 / 32 / LINK + 70 * (START + ONCE)
    assert full - less == pytest.approx(3 * gathering / 2)  # half of it lives on: a billion elements


def test_more_live_parameters_come_in_fewer_gatherings() -> None:
    few, many = (seconds(3, stage3_max_live_parameters=live).data for live in (P, 0))
    assert many - few == pytest.approx(3 * 2 * (100 - 40) * (START + ONCE))


def test_overlap_hides_what_is_shorter_than_its_pass_but_for_its_ends() -> None:
    """A billion FLOPs take longer than any exchange here."""
    long = 10**15
    last_bucket = (G / 4) * 31 / 32 / LINK + START + ONCE
    first_gathering = 2 * 50_000_000 * 31 / 32 / LINK + START + ONCE
    small_ones = 70 * (START + ONCE)
    shown = seconds(3, flops=long, overlap_comm=True).data
    assert shown == pytest.approx(3 * (first_gathering + last_bucket) + small_ones)
    last_sum = 2 * (G / 4) * 31 / 32 / LINK + START + 2 * ONCE
    weights = G * 31 / 32 / LINK + 4 * (START + ONCE)
    assert seconds(2, flops=long, overlap_comm=True).data == pytest.approx(3 * last_sum + weights)


@pytest.mark.parametrize(("checkpointing", "forward"), [(False, 1 / 3), (True, 1 / 4)])
def test_what_is_longer_than_its_pass_shows(checkpointing: bool, forward: float) -> None:
    """Both passes are shorter than what is exchanged beside them; for ZeRO-2 that is the backward pass alone."""
    shape = dataclasses.replace(SHAPE, checkpointing=checkpointing)
    for stage, beside in ((3, 1.0), (2, 1 - forward)):
        apart, overlapped = (seconds(stage, shape=shape, overlap_comm=on).data for on in (False, True))
        assert apart - overlapped == pytest.approx(3 * beside * COMPUTE)
    # The forward pass hides no more than itself, however long the backward pass is.
    long = 10**12 * 3 // 2
    forward_only = 3 * (G * 31 / 32 / LINK + 70 * (START + ONCE)) - 3 * forward * COMPUTE * 1.5
    assert seconds(3, shape=shape, flops=long, overlap_comm=True).data > forward_only


def test_gradients_of_one_bucket_hide_behind_nothing() -> None:
    one = seconds(2, flops=10**15, overlap_comm=True, reduce_bucket_size=P).data
    assert one == pytest.approx(seconds(2, overlap_comm=False, reduce_bucket_size=P).data)
