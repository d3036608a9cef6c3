"""Four steps, a fresh start, four more: bit for bit the run of eight, the average of its weights included."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from git_scale.checkpoint.detect import open_checkpoint
from git_scale.checkpoint.state import EMA
from git_scale.parallel.topology import Topology
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import load_weights, tiny_run

Trace = dict[str, list[Any]]


def train(
    topology: Topology,
    device: torch.device,
    data: Path,
    run_dir: Path,
    stage: int,
    precision: str,
    attention: str,
    until: int,
) -> Trace:
    """Steps up to `until` from wherever the run stands; the losses' bits, the samples' keys, the weights."""
    from git_scale.training.build import build_trainer

    micro_batch = 8 // topology.dp // 2
    decoder = {"layers": 2, "width": 32, "heads": 2, "ffn": 64, "positions": 16, "dropout": 0.2}
    run = tiny_run(
        data,
        run_dir,
        train={"steps": 20, "precision": precision, "micro_batch": micro_batch},
        model={"decoder": {**decoder, "attention": attention}},
        data={"workers": 1},
        optimizer={"ema": 0.9},
    )
    trainer = build_trainer(run, {"zero_optimization": {"stage": stage}}, topology, device)
    keys = _record_keys(trainer)
    losses = []
    while trainer.step < until:
        result = trainer.train_step()
        trainer.step += 1
        losses.append((trainer.step, result.loss.hex(), float(result.grad_norm).hex()))
    trainer.save()
    checkpoint = run_dir / "checkpoints" / f"step_{until:08d}"
    average = open_checkpoint(checkpoint, EMA).weights
    hashes = [_hash(load_weights(checkpoint)), _hash({name: average.read(name) for name in average.shapes})]
    return {"losses": losses, "keys": keys, "weights": hashes}


def _record_keys(trainer: Any) -> list[str]:
    keys: list[str] = []
    batches = trainer._batches

    def recorded() -> Any:
        for batch in batches:
            keys.extend(batch.keys)
            yield batch

    trainer._batches = recorded()
    return keys


def _hash(weights: dict[str, torch.Tensor]) -> str:
    hasher = hashlib.sha256()
    for name in sorted(weights):
        hasher.update(name.encode() + weights[name].contiguous().numpy().tobytes())
    return hasher.hexdigest()


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("world_size", "stage", "precision", "attention"),
    [
        pytest.param(2, 3, "fp32", "joint", id="zero3-dp2"),
        pytest.param(2, 3, "bf16", "joint", id="zero3-dp2-bf16", marks=pytest.mark.proof),
        pytest.param(2, 2, "bf16", "joint", id="zero2-dp2-bf16", marks=pytest.mark.proof),
        pytest.param(2, 1, "fp32", "joint", id="zero1-dp2"),
        pytest.param(2, 1, "bf16", "joint", id="zero1-dp2-bf16", marks=pytest.mark.proof),
        pytest.param(1, 0, "fp32", "joint", id="zero0-dp1"),
        pytest.param(2, 3, "bf16", "cross", id="zero3-dp2-bf16-cross"),
        pytest.param(2, 1, "fp32", "cross", id="zero1-dp2-cross"),
    ],
)
def test_resumed_run_equals_the_uninterrupted_one(
    squares: Path, tmp_path: Path, world_size: int, stage: int, precision: str, attention: str
) -> None:
    def run(name: str, until: int) -> list[Trace]:
        where = squares, tmp_path / name
        return run_distributed(train, world_size, *where, stage, precision, attention, until)

    whole = run("whole", 8)
    first, second = run("cut", 4), run("cut", 8)
    for rank in range(world_size):
        assert first[rank]["losses"] + second[rank]["losses"] == whole[rank]["losses"]
        assert first[rank]["keys"] + second[rank]["keys"] == whole[rank]["keys"]
        assert second[rank]["weights"] == whole[rank]["weights"]
    assert first[0]["weights"] != whole[0]["weights"]
    if world_size == 2:
        assert not set(whole[0]["keys"][:4]) & set(whole[1]["keys"][:4]), "ranks see different samples"
