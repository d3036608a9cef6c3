"""Bytes per parameter of each stage, and what buckets take, by hand; test_measured_peak.py has the real thing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from git_scale.planning.memory import StepShape, host_bytes, phase_peaks
from git_scale.planning.partition_sizes import PartitionSizes
from git_scale.planning.profiling import MicroBatchProfile
from git_scale.planning.zero_config import ZeroConfig, read_zero_config

P = 8_000_000
PROFILE = MicroBatchProfile(
    fixed=torch.tensor([0, 50, 10]),
    per_sample=torch.tensor([100, 200, 0]),
    logits=torch.tensor([0, 80, 0]),
    gradients_done=torch.tensor([0, 0, P]),
    tp_bytes=0,
    tp_exchanges=0,
    parameters=(),
    flops=0,
)


NONE = torch.zeros(3, dtype=torch.long)
FULL = replace(PROFILE, gradients_done=torch.full((3,), P))


def sizes_over(dp: int, parameter: int, gradient: int | None = None) -> PartitionSizes:
    """`parameter` and `gradient` are bytes; gradients are summed in the precision of the parameters unless said."""
    return PartitionSizes(
        bytes_per_parameter=parameter,
        bytes_per_gradient=gradient or parameter,
        dp=dp,
        parameters=P,
        trainable=P,
        largest_trainable=P // 8,
        optimizer_partition=P // dp,
        parameter_partition=P // dp,
        params_in_partition=P // dp,
        largest_group_partition=P // dp,
        gathered_matrices=8,
        persistent_parameters=0,
        unreleased=0,
    )


def zero(stage: int, bucket: int = 1_000_000) -> ZeroConfig:
    return replace(
        read_zero_config({"zero_optimization": {"stage": stage}}, "fp32"), reduce_bucket_size=bucket
    )


SHAPE = StepShape("cuda", micro_batch=3, accumulation=1, checkpointing=False, sample_bytes=10)


@pytest.mark.parametrize(
    ("stage", "element", "per_parameter"),
    [
        (0, 4, 12),  # weights and two moments
        (1, 4, 4 + 12 / 8),  # a copy of the weights to update lies beside them
        (2, 4, 4 + 12 / 8),
        (3, 4, (4 + 12 + 4) / 8),  # with the gradients
        (1, 2, 2 + 12 / 8),
        (2, 2, 2 + 12 / 8),
        (3, 2, (2 + 12 + 2) / 8),
    ],
)
def test_states_per_parameter_on_eight_ranks(stage: int, element: int, per_parameter: float) -> None:
    sizes = replace(sizes_over(8, element), optimizer_partition=P if stage == 0 else P // 8)
    for memory in phase_peaks(sizes, zero(stage), PROFILE, SHAPE):
        assert memory.states == per_parameter * P


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_sums_in_fp32_take_four_bytes(stage: int) -> None:
    """Of what is kept over micro-batches: all of it (1), this rank's part (2, 3: among its states)."""
    again = replace(SHAPE, accumulation=2)
    coarse, fine = (
        next(
            phase_peaks(sizes_over(8, 2, gradient), zero(stage), replace(PROFILE, gradients_done=NONE), again)
        )
        for gradient in (2, 4)
    )
    if stage == 3:
        assert fine.states - coarse.states == 2 * P // 8
    else:
        assert fine.gradients == {1: 4 * P, 2: 4 * P // 8}[stage] == 2 * coarse.gradients
    # ZeRO-2 copies gradients to its bucket as they come, the others as they are summed.
    assert fine.communication == coarse.communication * (1 if stage == 2 else 2)


def test_sums_in_fp32_meet_the_update_without_a_copy() -> None:
    """A rank's part lies there as one vector of fp32: the plan holds it and nothing beside."""
    coarse, fine = (
        list(
            phase_peaks(
                replace(sizes_over(8, 2, gradient), largest_trainable=P // 64), zero(2), PROFILE, SHAPE
            )
        )[-1]
        for gradient in (2, 4)
    )
    assert (fine.phase, fine.gradients) == ("update", 4 * P // 8)
    assert coarse.update == (2 + 4) * P // 8
    assert fine.update == 8 * P // 64  # the norm's fp64 copy of the largest gradient


def test_exchanging_sums_in_fp32_takes_wider_copies() -> None:
    """Of a full bucket of ZeRO-2: laid one behind the other as they came, then widened."""
    coarse, fine = (
        next(phase_peaks(sizes_over(8, 2, gradient), zero(2), FULL, SHAPE)) for gradient in (2, 4)
    )
    bucket = 1_000_000
    assert coarse.communication == 2 * bucket + 2 * bucket
    assert fine.communication == 2 * bucket + (2 + 4) * bucket


def test_the_highest_moment_and_its_parts() -> None:
    before = replace(PROFILE, gradients_done=torch.zeros(3, dtype=torch.long))
    first = next(phase_peaks(sizes_over(1, 2), zero(0), before, SHAPE))
    assert (first.activations, first.logits) == (50 + 3 * 200 - 3 * 80, 3 * 80)
    assert first.total == first.states + 50 + 3 * 200


def test_gradients_of_earlier_micro_batches_are_there_from_the_start() -> None:
    before = replace(PROFILE, gradients_done=torch.zeros(3, dtype=torch.long))
    again = replace(SHAPE, accumulation=2)
    for stage, bytes_kept in ((0, 2 * P), (1, 2 * P), (2, 2 * P // 8), (3, 0)):
        assert next(phase_peaks(sizes_over(8, 2), zero(stage), before, again)).gradients == bytes_kept


def test_buckets_are_allocated_on_cuda_and_touched_on_a_cpu() -> None:
    sizes = sizes_over(1, 2)
    on_cuda = next(phase_peaks(sizes, zero(1), PROFILE, SHAPE))
    on_cpu = next(phase_peaks(sizes, zero(1), PROFILE, replace(SHAPE, kind="cpu")))
    assert on_cuda.communication == 2 * 1_000_000
    assert on_cpu.communication == 0


def test_stage_0_copies_all_gradients_to_exchange_them() -> None:
    exchange = max((m for m in phase_peaks(sizes_over(1, 4), zero(0), PROFILE, SHAPE)), key=lambda m: m.total)
    assert exchange.phase == "exchange"
    assert exchange.total == 12 * P + 4 * P + 4 * P


def test_offload_moves_states_to_the_host() -> None:
    sizes = sizes_over(8, 2)
    moved = replace(zero(3), offload_optimizer=True, offload_param=True)
    assert next(phase_peaks(sizes, moved, PROFILE, SHAPE)).states == 0
    assert host_bytes(sizes, moved) == (4 + 8 + 4 + 2 + 2) * P // 8
    assert host_bytes(sizes_over(8, 2, 4), moved) == (4 + 8 + 4 + 4 + 2) * P // 8
    assert host_bytes(sizes, zero(3)) == 0


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_an_average_of_the_weights_takes_four_bytes_where_the_moments_lie(stage: int) -> None:
    sizes = sizes_over(8, 2)
    averaged = replace(sizes, bytes_beside_weight=12)
    before, after = (list(phase_peaks(found, zero(stage), PROFILE, SHAPE)) for found in (sizes, averaged))
    assert {b.states - a.states for a, b in zip(before, after, strict=True)} == {4 * P // 8}
    offloaded = replace(zero(stage), offload_optimizer=True)
    assert [peak.states for peak in phase_peaks(averaged, offloaded, PROFILE, SHAPE)] == [
        peak.states for peak in phase_peaks(sizes, offloaded, PROFILE, SHAPE)
    ]
    assert host_bytes(averaged, offloaded) - host_bytes(sizes, offloaded) == 4 * P // 8


def test_waiting_batches_count_on_a_cpu() -> None:
    sizes = sizes_over(1, 4)
    one, four = (
        next(phase_peaks(sizes, zero(0), PROFILE, replace(SHAPE, kind="cpu", accumulation=count)))
        for count in (1, 4)
    )
    assert four.states - one.states == 3 * 3 * 10
