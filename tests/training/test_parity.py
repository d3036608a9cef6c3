"""Every parallel path equals the serial one: losses and gradient norms over six steps with ragged captions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from git_scale.config import RunConfig
from git_scale.parallel import collectives
from git_scale.parallel.ds_config import read_ds_config
from git_scale.parallel.topology import Topology
from git_scale.testing.curves import ZERO, Curve, assert_same_curve, train_curve, train_curves
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import tiny_run
from git_scale.training.build import build_trainer

STEPS = 6


def train_curve_with_local_counts(*args: Any) -> Curve:
    """The classical mistake: each rank divides by its own number of target tokens."""
    collectives.sum_over_dp = lambda values: values
    return train_curve(*args)


def train_curve_without_factor(*args: Any) -> Curve:
    """DeepSpeed averages over ranks under ZeRO-3; without the engine's factor the gradient is half as long."""
    from git_scale.parallel.engine import Engine

    Engine.backward = lambda self, loss: self._engine.backward(loss, scale_wrt_gas=False)  # type: ignore[method-assign]
    return train_curve(*args)


@pytest.fixture(scope="module")
def serial(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Curve:
    run = tiny_run(squares, tmp_path_factory.mktemp("serial") / "run", train={"micro_batch": 8})
    (curve,) = run_distributed(train_curve, 1, run, ZERO[0], STEPS)
    assert curve[-1][0] < curve[0][0]
    assert max(norm for _, norm in curve) > run.optimizer.clip_norm, "clipping must be active"
    return curve


@pytest.fixture(
    scope="module",
    params=[(1, 8), (2, 4), (1, 4), (2, 2)],
    ids=["dp1", "dp2", "accum2", "dp2-accum2"],
)
def parallel(request: Any, squares: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[Curve]]:
    """A curve per ZeRO stage from each rank."""
    world_size, micro_batch = request.param
    run = tiny_run(squares, tmp_path_factory.mktemp("parallel") / "run", train={"micro_batch": micro_batch})
    return run_distributed(train_curves, world_size, run, ZERO, STEPS)


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_parallel_equals_serial(serial: Curve, parallel: list[list[Curve]], stage: int) -> None:
    for curves in parallel:
        assert_same_curve(curves[stage], serial)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("mistake", "stage"), [(train_curve_with_local_counts, 1), (train_curve_without_factor, 3)]
)
def test_parity_notices_a_wrong_normalisation(
    serial: Curve, squares: Path, tmp_path: Path, mistake: Any, stage: int
) -> None:
    curve = run_distributed(mistake, 2, tiny_run(squares, tmp_path / "run"), ZERO[stage], STEPS)[0]
    with pytest.raises(AssertionError):
        assert_same_curve(curve, serial)


def train_offloaded(
    topology: Topology, device: torch.device, run: RunConfig, coarse: RunConfig, extensions: Path
) -> tuple[Curve, list[tuple[int, list[bool]]]]:
    """With the shipped offload settings: the curve of `run`, and by ZeRO stage which of three steps `coarse` skips,
    the second with gradients that are not finite.

    DeepSpeed compiles its host Adam, into a folder of this test's own.
    """
    from deepspeed.ops.op_builder.cpu import CPUAdamBuilder

    flags = CPUAdamBuilder.cxx_args
    CPUAdamBuilder.cxx_args = lambda self: [*flags(self), "-O0", "-g0"]  # half of two minutes of CPU time
    os.environ["TORCH_EXTENSIONS_DIR"] = str(extensions)
    ds_config = read_ds_config(Path(__file__).parents[2] / "ds_configs" / "zero3_offload.json")
    curve = train_curve(topology, device, run, ds_config, STEPS)
    optimizer = {"offload_optimizer": ds_config["zero_optimization"]["offload_optimizer"]}
    skips = []
    for stage in (1, 2, 3):
        trainer = build_trainer(
            coarse, {"zero_optimization": {"stage": stage, **optimizer}}, topology, device
        )
        skipped = [trainer.train_step().skipped]
        encoder = trainer.engine.model.module.encoder
        hook = encoder.register_forward_hook(lambda _, __, output: output * torch.inf)
        skipped.append(trainer.train_step().skipped)
        hook.remove()
        skips.append((stage, [*skipped, trainer.train_step().skipped]))
    return curve, skips


@pytest.mark.proof  # DeepSpeed compiles its optimizer for the host first
@pytest.mark.distributed
def test_offloaded_states_equal_serial_and_forget_a_skipped_step(
    serial: Curve, squares: Path, tmp_path: Path
) -> None:
    """DeepSpeed itself keeps the gradients of a skipped step where they are summed in fp32 and the optimizer is on
    the host: all later steps would be skipped."""
    run, coarse = (
        tiny_run(squares, tmp_path / precision, train={"precision": precision})
        for precision in ("fp32", "bf16")
    )
    ((curve, skips),) = run_distributed(train_offloaded, 1, run, coarse, tmp_path / "extensions")
    assert_same_curve(curve, serial)
    assert skips == [(stage, [False, True, False]) for stage in (1, 2, 3)]


@pytest.mark.distributed
def test_secondary_shards_change_nothing(serial: Curve, squares: Path, tmp_path: Path) -> None:
    """ZeRO++'s hpZ: the weights of the backward pass are gathered from pairs of ranks instead of from all."""
    run = tiny_run(squares, tmp_path / "run", train={"micro_batch": 2})
    ds_config = {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2}}
    assert_same_curve(run_distributed(train_curve, 4, run, ds_config, STEPS)[0], serial)


@pytest.mark.distributed
def test_activation_checkpointing_changes_nothing(serial: Curve, squares: Path, tmp_path: Path) -> None:
    run = tiny_run(squares, tmp_path / "run", train={"activation_checkpointing": True})
    assert_same_curve(run_distributed(train_curve, 2, run, ZERO[3], STEPS)[0], serial)


@pytest.mark.distributed
def test_bf16_follows_fp32_within_its_noise(serial: Curve, squares: Path, tmp_path: Path) -> None:
    run = tiny_run(squares, tmp_path / "run", train={"precision": "bf16"})
    curve = run_distributed(train_curve, 2, run, ZERO[3], STEPS)[0]
    assert_same_curve(curve, serial, tolerance=0.03)
