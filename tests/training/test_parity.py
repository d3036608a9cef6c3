"""Every parallel path equals the serial one: losses and gradient norms over 10 steps with ragged captions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from git_scale.parallel import collectives
from git_scale.parallel.topology import Topology
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import tiny_run

STEPS = 10
Curve = list[tuple[float, float]]


def train_curve(
    topology: Topology, device: torch.device, data: Path, run_dir: Path, stage: int, train: dict[str, Any]
) -> Curve:
    from git_scale.training.build import build_trainer

    run = tiny_run(data, run_dir, train=train)
    trainer = build_trainer(run, {"zero_optimization": {"stage": stage}}, topology, device)
    return run_steps(trainer)


def run_steps(trainer: Any) -> Curve:
    curve = []
    for _ in range(STEPS):
        result = trainer.train_step()
        trainer.step += 1
        curve.append((result.loss, result.grad_norm))
    return curve


def train_curve_with_local_counts(*args: Any) -> Curve:
    """The classical mistake: each rank divides by its own number of target tokens."""
    collectives.sum_over_dp = lambda values: values
    return train_curve(*args)


def train_curve_without_factor(*args: Any) -> Curve:
    """DeepSpeed averages over ranks; without the engine's factor the gradient is half as long."""
    from git_scale.parallel.engine import Engine

    Engine.backward = lambda self, loss: self._engine.backward(loss, scale_wrt_gas=False)  # type: ignore[method-assign]
    return train_curve(*args)


@pytest.fixture(scope="module")
def serial(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Curve:
    run_dir = tmp_path_factory.mktemp("serial") / "run"
    curve = run_distributed(train_curve, 1, squares, run_dir, 0, {"micro_batch": 8})[0]
    assert curve[-1][0] < curve[0][0]
    assert max(norm for _, norm in curve) > 0.5, "clipping must be active"
    return curve


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("world_size", "micro_batch"),
    [(1, 8), (2, 4), (1, 4), (2, 2)],
    ids=["dp1", "dp2", "accum2", "dp2-accum2"],
)
def test_parallel_equals_serial(
    serial: Curve, squares: Path, tmp_path: Path, stage: int, world_size: int, micro_batch: int
) -> None:
    curves = run_distributed(
        train_curve, world_size, squares, tmp_path / "run", stage, {"micro_batch": micro_batch}
    )
    for curve in curves:
        torch.testing.assert_close(torch.tensor(curve), torch.tensor(serial), rtol=1e-5, atol=1e-5)


@pytest.mark.distributed
@pytest.mark.parametrize("mistake", [train_curve_with_local_counts, train_curve_without_factor])
def test_parity_notices_a_wrong_normalisation(
    serial: Curve, squares: Path, tmp_path: Path, mistake: Any
) -> None:
    curve = run_distributed(mistake, 2, squares, tmp_path / "run", 1, {"micro_batch": 4})[0]
    with pytest.raises(AssertionError):
        torch.testing.assert_close(torch.tensor(curve), torch.tensor(serial), rtol=1e-5, atol=1e-5)


def train_curve_offloaded(
    topology: Topology, device: torch.device, data: Path, run_dir: Path, extensions: Path
) -> Curve:
    """With the shipped offload settings; DeepSpeed compiles its host Adam, into a folder of this test's own."""
    os.environ["TORCH_EXTENSIONS_DIR"] = str(extensions)
    from git_scale.parallel.ds_config import read_ds_config
    from git_scale.training.build import build_trainer

    ds_config = read_ds_config(Path(__file__).parents[2] / "ds_configs" / "zero3_offload.json")
    trainer = build_trainer(tiny_run(data, run_dir), ds_config, topology, device)
    return run_steps(trainer)


@pytest.mark.distributed
def test_offloaded_states_equal_serial(serial: Curve, squares: Path, tmp_path: Path) -> None:
    (curve,) = run_distributed(train_curve_offloaded, 1, squares, tmp_path / "run", tmp_path / "extensions")
    torch.testing.assert_close(torch.tensor(curve), torch.tensor(serial), rtol=1e-5, atol=1e-5)


def train_curve_with_secondary_shards(
    topology: Topology, device: torch.device, data: Path, run_dir: Path
) -> Curve:
    """ZeRO++'s hpZ: the weights of the backward pass are gathered from pairs of ranks instead of from all."""
    from git_scale.training.build import build_trainer

    zero = {"stage": 3, "zero_hpz_partition_size": 2}
    run = tiny_run(data, run_dir, train={"micro_batch": 2})
    return run_steps(build_trainer(run, {"zero_optimization": zero}, topology, device))


@pytest.mark.distributed
def test_secondary_shards_change_nothing(serial: Curve, squares: Path, tmp_path: Path) -> None:
    curve = run_distributed(train_curve_with_secondary_shards, 4, squares, tmp_path / "run")[0]
    torch.testing.assert_close(torch.tensor(curve), torch.tensor(serial), rtol=1e-5, atol=1e-5)


@pytest.mark.distributed
def test_activation_checkpointing_changes_nothing(serial: Curve, squares: Path, tmp_path: Path) -> None:
    train = {"micro_batch": 4, "activation_checkpointing": True}
    curve = run_distributed(train_curve, 2, squares, tmp_path / "run", 3, train)[0]
    torch.testing.assert_close(torch.tensor(curve), torch.tensor(serial), rtol=1e-5, atol=1e-5)


@pytest.mark.distributed
def test_bf16_follows_fp32_within_its_noise(serial: Curve, squares: Path, tmp_path: Path) -> None:
    train = {"micro_batch": 4, "precision": "bf16"}
    curve = run_distributed(train_curve, 2, squares, tmp_path / "run", 3, train)[0]
    torch.testing.assert_close(torch.tensor(curve), torch.tensor(serial), rtol=0.03, atol=0.03)
