"""Weights out of a run's checkpoint: what the engine trained, whatever the stage, with parts that do not learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from git_scale.checkpoint.detect import open_checkpoint
from git_scale.checkpoint.opened_checkpoint import load_model
from git_scale.checkpoint.weights import read_finite
from git_scale.errors import CheckpointError
from git_scale.parallel.topology import Topology
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import tiny_run

SCATTERED = ["*.norm1.*", "encoder.backbone.pos_embed", "decoder.embedding.positions.*"]
# ZeRO stage, what does not learn, precision
CASES: dict[str, tuple[int, list[str], str]] = {
    "stage0": (0, SCATTERED, "fp32"),
    "stage1": (1, SCATTERED, "fp32"),
    "stage2": (2, ["encoder.*"], "fp32"),
    "stage3": (3, SCATTERED, "fp32"),
    "stage1_bf16": (1, ["encoder.*"], "bf16"),
    "stage3_bf16": (3, ["encoder.*"], "bf16"),
}
Arrays = dict[str, np.ndarray]


def train_and_save(
    topology: Topology, device: torch.device, squares: Path, folder: Path
) -> dict[str, Arrays]:
    """Of each case two steps and a checkpoint; returns the models' weights, gathered by DeepSpeed itself."""
    return {
        name: _train_case(topology, device, squares, folder / name, *case) for name, case in CASES.items()
    }


def _train_case(
    topology: Topology,
    device: torch.device,
    squares: Path,
    run_dir: Path,
    stage: int,
    freeze: list[str],
    precision: str,
) -> Arrays:
    import deepspeed

    from git_scale.training.build import build_trainer

    run = tiny_run(squares, run_dir, train={"freeze": freeze, "precision": precision})
    trainer = build_trainer(run, {"zero_optimization": {"stage": stage}}, topology, device)
    for _ in range(2):
        trainer.train_step()
        trainer.step += 1
    trainer.save()
    module = trainer.engine.model.module
    with deepspeed.zero.GatheredParameters(list(module.parameters()), enabled=stage == 3):
        return {name: tensor.detach().float().numpy().copy() for name, tensor in module.state_dict().items()}


@pytest.fixture(scope="module")
def saved(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Arrays]]:
    folder = tmp_path_factory.mktemp("runs")
    return folder, run_distributed(train_and_save, 2, squares, folder)[0]


@pytest.mark.distributed
@pytest.mark.parametrize("name", [name for name in CASES if "bf16" not in name])
def test_weights_are_those_of_the_engine(saved: tuple[Path, dict[str, Arrays]], name: str) -> None:
    folder, engines = saved
    opened = open_checkpoint(folder / name)
    assert (opened.kind, opened.step, opened.path.name) == ("training", 2, "step_00000002")
    engine = {key: torch.from_numpy(array) for key, array in engines[name].items()}
    assert opened.weights.shapes == {key: tensor.shape for key, tensor in engine.items()}
    for key, tensor in engine.items():
        assert torch.equal(opened.weights.read(key), tensor), key
    model = load_model(opened)
    assert model.decoder.head.weight is model.decoder.embedding.words.weight
    assert torch.equal(model.encoder.backbone.pos_embed, engine["encoder.backbone.pos_embed"])


@pytest.mark.distributed
@pytest.mark.parametrize("name", [name for name in CASES if "bf16" in name])
def test_in_bf16_the_fp32_copies_are_read(saved: tuple[Path, dict[str, Arrays]], name: str) -> None:
    folder, engines = saved
    weights = open_checkpoint(folder / name).weights
    finer = set()
    for key, array in engines[name].items():
        found, engine = weights.read(key), torch.from_numpy(array)
        assert torch.equal(found.bfloat16().float(), engine), key
        if not torch.equal(found, engine):
            finer.add(key)
    assert "decoder.layers.0.query.weight" in finer
    assert not any(key.startswith("encoder.") for key in finer)  # what does not learn exists in bf16 only


class Fixed:
    def __init__(self, tensor: Tensor) -> None:
        self.shapes, self.dropped, self.tensor = {"x": tensor.shape}, {}, tensor

    def read(self, name: str) -> Tensor:
        return self.tensor


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(CheckpointError, match="x holds numbers that are not finite"):
        read_finite(Fixed(torch.tensor([1.0, value])), "x")
    large = torch.tensor([3e38, 3e38, 1.0])  # finite, but its sum is not
    assert read_finite(Fixed(large), "x") is large
    assert read_finite(Fixed(torch.tensor([3])), "x").dtype == torch.int64
    assert read_finite(Fixed(torch.tensor(-torch.inf)), "x") == -torch.inf, "a bound that is open"
    with pytest.raises(CheckpointError):
        read_finite(Fixed(torch.tensor(torch.nan)), "x")
