"""Bytes per parameter of each stage, and what buckets take, by hand; test_measured_peak.py has the real thing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from git_scale.planning.activations import Timeline
from git_scale.planning.memory import Load, on_host, phases
from git_scale.planning.states import Holding
from git_scale.planning.zero import Zero, read_zero

P = 8_000_000
TIMELINE = Timeline(
    fixed=torch.tensor([0, 50, 10]),
    per_sample=torch.tensor([100, 200, 0]),
    logits=torch.tensor([0, 80, 0]),
    gradients=torch.tensor([0, 0, P]),
    summed=0,
    sums=0,
    parameters=(),
    flops=0,
)


NONE = torch.zeros(3, dtype=torch.long)
FULL = replace(TIMELINE, gradients=torch.full((3,), P))


def holding(dp: int, element: int, gradient: int | None = None) -> Holding:
    """Gradients are summed in the precision of the weights unless said."""
    return Holding(
        element=element,
        gradient=gradient or element,
        dp=dp,
        weights=P,
        learning=P,
        largest=P // 8,
        part=P // dp,
        weights_part=P // dp,
        gradient_part=P // dp,
        group_part=P // dp,
        gathered=8,
        persistent=0,
        lingering=0,
    )


def zero(stage: int, bucket: int = 1_000_000) -> Zero:
    return replace(read_zero({"zero_optimization": {"stage": stage}}, "fp32"), bucket=bucket)


LOAD = Load("cuda", micro_batch=3, accumulation=1, checkpointing=False, inputs=10)


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
    held = replace(holding(8, element), part=P if stage == 0 else P // 8)
    for memory in phases(held, zero(stage), TIMELINE, LOAD):
        assert memory.states == per_parameter * P


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_sums_in_fp32_take_four_bytes(stage: int) -> None:
    """Of what is kept over micro-batches: all of it (1), this rank's part (2, 3: among its states)."""
    again = replace(LOAD, accumulation=2)
    coarse, fine = (
        next(phases(holding(8, 2, gradient), zero(stage), replace(TIMELINE, gradients=NONE), again))
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
        list(phases(replace(holding(8, 2, gradient), largest=P // 64), zero(2), TIMELINE, LOAD))[-1]
        for gradient in (2, 4)
    )
    assert (fine.phase, fine.gradients) == ("update", 4 * P // 8)
    assert coarse.update == (2 + 4) * P // 8
    assert fine.update == 8 * P // 64  # the norm's fp64 copy of the largest gradient


def test_exchanging_sums_in_fp32_takes_wider_copies() -> None:
    """Of a full bucket of ZeRO-2: laid one behind the other as they came, then widened."""
    coarse, fine = (next(phases(holding(8, 2, gradient), zero(2), FULL, LOAD)) for gradient in (2, 4))
    bucket = 1_000_000
    assert coarse.communication == 2 * bucket + 2 * bucket
    assert fine.communication == 2 * bucket + (2 + 4) * bucket


def test_the_highest_moment_and_its_parts() -> None:
    before = replace(TIMELINE, gradients=torch.zeros(3, dtype=torch.long))
    first = next(phases(holding(1, 2), zero(0), before, LOAD))
    assert (first.activations, first.logits) == (50 + 3 * 200 - 3 * 80, 3 * 80)
    assert first.total == first.states + 50 + 3 * 200


def test_gradients_of_earlier_micro_batches_are_there_from_the_start() -> None:
    before = replace(TIMELINE, gradients=torch.zeros(3, dtype=torch.long))
    again = replace(LOAD, accumulation=2)
    for stage, bytes_kept in ((0, 2 * P), (1, 2 * P), (2, 2 * P // 8), (3, 0)):
        assert next(phases(holding(8, 2), zero(stage), before, again)).gradients == bytes_kept


def test_buckets_are_allocated_on_cuda_and_touched_on_a_cpu() -> None:
    held = holding(1, 2)
    on_cuda = next(phases(held, zero(1), TIMELINE, LOAD))
    on_cpu = next(phases(held, zero(1), TIMELINE, replace(LOAD, kind="cpu")))
    assert on_cuda.communication == 2 * 1_000_000
    assert on_cpu.communication == 0


def test_stage_0_copies_all_gradients_to_exchange_them() -> None:
    exchange = max((m for m in phases(holding(1, 4), zero(0), TIMELINE, LOAD)), key=lambda m: m.total)
    assert exchange.phase == "exchange"
    assert exchange.total == 12 * P + 4 * P + 4 * P


def test_offload_moves_states_to_the_host() -> None:
    held = holding(8, 2)
    moved = replace(zero(3), optimizer_on_host=True, weights_on_host=True)
    assert next(phases(held, moved, TIMELINE, LOAD)).states == 0
    assert on_host(held, moved) == (4 + 8 + 4 + 2 + 2) * P // 8
    assert on_host(holding(8, 2, 4), moved) == (4 + 8 + 4 + 4 + 2) * P // 8
    assert on_host(held, zero(3)) == 0


def test_waiting_batches_count_on_a_cpu() -> None:
    held = holding(1, 4)
    one, four = (
        next(phases(held, zero(0), TIMELINE, replace(LOAD, kind="cpu", accumulation=count)))
        for count in (1, 4)
    )
    assert four.states - one.states == 3 * 3 * 10
