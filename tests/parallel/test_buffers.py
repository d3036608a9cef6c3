"""What forward passes change beside parameters: a skipped step changes none of it, on any rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from git_scale.parallel.buffers import KeptBuffers, persistent_buffers
from git_scale.parallel.topology import Topology
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import tiny_run
from git_scale.testing.towers import RESNET
from git_scale.training.build import build_trainer


def buffers_of(trainer: Any) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in persistent_buffers(trainer.engine.model.module)}


def weights_of(trainer: Any) -> list[Tensor]:
    """Weights and moments as this rank holds them."""
    return [numbers().clone() for *_, numbers in trainer.engine._rank_state.pieces()]


def skip_a_step(
    topology: Topology, device: torch.device, squares: Path, run_dir: Path, stage: int, keeps: bool
) -> Any:
    """A good step, one with activations that are not finite on the second rank, another good one."""
    run = tiny_run(squares, run_dir, model={"encoder": RESNET}, train={"micro_batch": 2})
    trainer = build_trainer(run, {"zero_optimization": {"stage": stage}}, topology, device)
    if not keeps:
        trainer.engine._kept.go_back = lambda: None
    first = trainer.train_step()
    before, weights = buffers_of(trainer), weights_of(trainer)
    stem = trainer.engine.model.module.encoder.backbone.conv1
    poison = torch.inf if topology.dp_rank == 1 else 1.0
    hook = stem.register_forward_hook(lambda _, __, output: output * poison)
    bad = trainer.train_step()
    hook.remove()
    after = buffers_of(trainer)
    same = all(torch.equal(before[name], after[name]) for name in before)
    same_weights = all(map(torch.equal, weights, weights_of(trainer)))
    last = trainer.train_step()
    changed = buffers_of(trainer)
    return {
        "skipped": [first.skipped, bad.skipped, last.skipped],
        "same": same,
        "same_weights": same_weights,
        "finite": all(bool(buffer.isfinite().all()) for buffer in changed.values()),
        "counts": {int(changed[name]) for name in changed if name.endswith("num_batches_tracked")},
        "moved": any(not torch.equal(after[name], changed[name]) for name in changed),
    }


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_skipped_step_leaves_buffers_as_they_were(squares: Path, tmp_path: Path, stage: int) -> None:
    for answer in run_distributed(skip_a_step, 2, squares, tmp_path / "run", stage, True):
        assert answer["skipped"] == [False, True, False]
        assert answer["same"] and answer["same_weights"] and answer["finite"] and answer["moved"]
        assert answer["counts"] == {4}  # two good steps of two micro-batches


@pytest.mark.distributed
def test_without_the_kept_ones_they_would_be_lost(squares: Path, tmp_path: Path) -> None:
    answers = run_distributed(skip_a_step, 2, squares, tmp_path / "run", 1, False)
    assert not any(answer["same"] for answer in answers)
    assert [answer["finite"] for answer in answers] == [True, False]


def spectral() -> nn.Module:
    module = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
    nn.init.eye_(
        module.parametrizations.weight.original
    )  # whose largest direction is not the one that was found
    module.parametrizations.weight.original.data[0] *= 5
    return module


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm1d(3),
        nn.BatchNorm1d(3, momentum=None),
        nn.InstanceNorm1d(3, track_running_stats=True),
        spectral(),
        nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)),
    ],
    ids=["batch", "cumulative", "instance", "spectral", "nested"],
)
def test_any_buffer_that_a_forward_pass_changes_goes_back(module: nn.Module) -> None:
    torch.manual_seed(0)
    kept = KeptBuffers(module)
    before = {name: buffer.clone() for name, buffer in persistent_buffers(module)}
    module(torch.randn(4, 3, 5).squeeze() if isinstance(module, nn.InstanceNorm1d) else torch.randn(4, 3))
    changed = dict(persistent_buffers(module))
    assert any(not torch.equal(before[name], changed[name]) for name in before)
    kept.go_back()
    for name, buffer in persistent_buffers(module):
        assert torch.equal(buffer, before[name]), name
    module(torch.randn(4, 3, 5) if isinstance(module, nn.InstanceNorm1d) else torch.randn(4, 3))
    kept.keep()
    now = {name: buffer.clone() for name, buffer in persistent_buffers(module)}
    kept.go_back()
    for name, buffer in persistent_buffers(module):
        assert torch.equal(buffer, now[name]), name


def average_with_a_broken_one(
    topology: Topology, device: torch.device, squares: Path, run_dir: Path
) -> list[str]:
    trainer = build_trainer(
        tiny_run(squares, run_dir, model={"encoder": RESNET}),
        {"zero_optimization": {"stage": 1}},
        topology,
        device,
    )
    if topology.dp_rank == 1:
        trainer.engine.model.module.encoder.backbone.bn1.running_var[3] = torch.nan
    messages = []
    for action in (trainer.engine.average_statistics, trainer.save):
        try:
            action()
            messages.append("nothing was said")
        except RuntimeError as error:
            messages.append(str(error))
    return messages


@pytest.mark.distributed
def test_statistics_that_are_not_finite_are_neither_spread_in_silence_nor_saved(
    squares: Path, tmp_path: Path
) -> None:
    for messages in run_distributed(average_with_a_broken_one, 2, squares, tmp_path / "run"):
        for message in messages:
            assert "encoder.backbone.bn1.running_var" in message and "not finite" in message
    assert not list((tmp_path / "run").glob("checkpoints/step_*"))
