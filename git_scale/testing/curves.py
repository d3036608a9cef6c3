"""What a parallel run must have in common with the serial one: its losses and gradient norms, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from git_scale.config import RunConfig
from git_scale.parallel.topology import Topology
from git_scale.training.build import build_trainer
from git_scale.training.trainer import Trainer

Curve = list[tuple[float, float]]  # loss and gradient norm before clipping, by step

ZERO: list[dict[str, Any]] = [{"zero_optimization": {"stage": stage}} for stage in range(4)]
"""DeepSpeed's settings of each ZeRO stage, and nothing else."""


def curve_of(trainer: Trainer, steps: int) -> Curve:
    """The next steps of a trainer."""
    curve = []
    for _ in range(steps):
        result = trainer.train_step()
        trainer.step += 1
        curve.append((result.loss, result.grad_norm))
    return curve


def train_curve(
    topology: Topology, device: torch.device, run: RunConfig, ds_config: dict[str, Any], steps: int
) -> Curve:
    """The first steps of a run; for run_distributed."""
    return curve_of(build_trainer(run, ds_config, topology, device), steps)


def train_curves(
    topology: Topology, device: torch.device, run: RunConfig, ds_configs: Sequence[dict[str, Any]], steps: int
) -> list[Curve]:
    """The same under one of DeepSpeed's settings after the other: processes start once for all of them."""
    return [train_curve(topology, device, run, ds_config, steps) for ds_config in ds_configs]


def assert_same_curve(found: Curve, expected: Curve, tolerance: float = 1e-5) -> None:
    """`tolerance` is relative and absolute."""
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=tolerance, atol=tolerance)
