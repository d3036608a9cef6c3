"""The gradient that the optimizer gets in bf16 against the fp64 sum of those that the backward passes made."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from git_scale.config import RunConfig
from git_scale.parallel.comm import DP, TP
from git_scale.parallel.topology import Topology
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import tiny_run
from git_scale.training.build import build_trainer

CLIP = 0.5


@dataclass(frozen=True)
class Sums:
    """Of a step's gradient: the relative error of its elements, and its norm as reported and in fp64."""

    error: float
    norm: float
    exact_norm: float


def gradient_of_a_step(
    topology: Topology, device: torch.device, run: RunConfig, zero: dict[str, Any]
) -> Sums:
    trainer = build_trainer(run, {"zero_optimization": zero}, topology, device)
    engine: Any = trainer.engine
    module = engine.model.module
    exact = {name: torch.zeros(_shape(p), dtype=torch.float64) for name, p in module.named_parameters()}
    for name, parameter in module.named_parameters():
        parameter.register_hook(lambda gradient, total=exact[name]: _add(total, gradient))
    given = _record_what_the_optimizer_gets(engine._engine.basic_optimizer)
    norm = trainer.train_step().grad_norm
    squares = torch.zeros((), dtype=torch.float64)
    for name, total in exact.items():
        DP.sum_(total)
        total /= engine._gradient_factor
        split = module.get_parameter(name).tensor_model_parallel
        squares += total.square().sum() * (split or topology.tp_rank == 0)
    TP.sum_(squares)
    exact_norm = float(squares.sqrt())
    difference, whole = torch.zeros(2, dtype=torch.float64).unbind()
    for master in engine._rank_state._masters():
        piece = master.piece
        expected = exact[piece.name].flatten()[piece.start : piece.start + piece.length]
        expected = expected * min(1.0, CLIP / exact_norm)
        difference += (master.view(given[id(master.vector)]) - expected).square().sum()
        whole += expected.square().sum()
    both = torch.stack([difference, whole])
    dist.all_reduce(both)
    return Sums(float((both[0] / both[1]).sqrt()), norm, exact_norm)


def _shape(parameter: Any) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


def _add(total: Tensor, gradient: Tensor) -> None:
    assert gradient.dtype == torch.bfloat16
    total += gradient.view(total.shape)


def _record_what_the_optimizer_gets(optimizer: Any) -> dict[int, Tensor]:
    """The gradient by the id of what it updates, as it is at the update."""
    given: dict[int, Tensor] = {}
    update = optimizer.step

    def record_and_update() -> None:
        for group in optimizer.param_groups:
            given.update((id(p), p.grad.detach().double()) for p in group["params"] if p.grad is not None)
        update()

    optimizer.step = record_and_update
    return given


STAGES: dict[str, dict[str, Any]] = {str(stage): {"stage": stage} for stage in (1, 2, 3)}
ZEROS: dict[str, dict[str, Any]] = STAGES | {
    "1-overlapping": {"stage": 1, "overlap_comm": True},
    "2-overlapping": {"stage": 2, "overlap_comm": True},
    "2-scattered": {"stage": 2, "contiguous_gradients": False},
    "2-small-buckets": {"stage": 2, "reduce_bucket_size": 2000},
    "3-small-buckets": {"stage": 3, "reduce_bucket_size": 2000},
}


def gradients_of_steps(
    topology: Topology, device: torch.device, run: RunConfig, zeros: dict[str, dict[str, Any]]
) -> dict[str, Sums]:
    return {name: gradient_of_a_step(topology, device, run, zero) for name, zero in zeros.items()}


@pytest.fixture(scope="module")
def sums_of(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """By ZeRO setting, of (dp, accumulation, tp, gradient_precision); each taken once."""

    @functools.cache
    def take(dp: int, accumulation: int, tp: int, gradient_precision: str) -> dict[str, Sums]:
        train = {
            "precision": "bf16",
            "micro_batch": 1,
            "global_batch": dp * accumulation,
            "gradient_precision": gradient_precision,
        }
        folder = tmp_path_factory.mktemp("sums") / "run"
        run = tiny_run(squares, folder, train=train, optimizer={"clip_norm": CLIP}, parallel={"tp": tp})
        zeros = ZEROS if (dp, tp) == (2, 1) else STAGES
        return run_distributed(gradients_of_steps, dp * tp, run, zeros, tp=tp)[0]

    return take


def assert_exact(found: Sums) -> None:
    assert found.exact_norm > 2 * CLIP, "clipping must be active"
    assert found.error < 1e-5
    assert found.norm == pytest.approx(found.exact_norm, rel=1e-5)


@pytest.mark.distributed
@pytest.mark.parametrize("zero", ZEROS)
def test_bf16_gradients_are_summed_in_fp32(sums_of: Any, zero: str) -> None:
    assert_exact(sums_of(2, 8, 1, "fp32")[zero])


@pytest.mark.distributed
@pytest.mark.parametrize("zero", STAGES)
@pytest.mark.parametrize(("dp", "tp"), [(3, 1), (2, 2)], ids=["three ranks", "tensor-parallel"])
def test_bf16_gradients_are_summed_in_fp32_over_any_ranks(sums_of: Any, zero: str, dp: int, tp: int) -> None:
    """Division by three rounds, by two it does not; the norm of split weights is the whole one."""
    assert_exact(sums_of(dp, 2, tp, "fp32")[zero])


@pytest.mark.distributed
@pytest.mark.parametrize("zero", ZEROS)
def test_sums_in_bf16_show_their_error(sums_of: Any, zero: str) -> None:
    assert 1e-3 < sums_of(2, 8, 1, "bf16")[zero].error < 1e-2
