"""What only a GPU can show of the engine: bf16 beside fp32, ZeRO-3 through NCCL, the attention kernel taken."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from git_scale.config import RunConfig
from git_scale.models.build import build_model
from git_scale.objectives.language_model import language_model_loss
from git_scale.parallel.engine import Engine, start_processes, stop_processes
from git_scale.parallel.materialise import materialise_model
from git_scale.parallel.topology import Topology, free_port
from git_scale.recipes import load_run
from git_scale.testing.gpu import requires_gpu
from git_scale.training.init_model import deferred_model
from git_scale.training.optimizer import parameter_groups

SMALL = [
    "model.encoder.name=vit_tiny_patch16_224",
    "model.encoder.image_size=64",
    "model.encoder.options={depth: 2, embed_dim: 64, num_heads: 2}",
    "model.vocab_size=101",
    "train.global_batch=4",
    "train.micro_batch=4",
    "optimizer.decoder_lr=1e-3",
]
ZERO3 = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}


@pytest.fixture(scope="module")
def device() -> Iterator[torch.device]:
    topology = Topology(master_port=free_port())
    yield start_processes(topology)
    stop_processes()


def small_run(*overrides: str) -> RunConfig:
    return load_run("demo", [*SMALL, *overrides])


def inputs(device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 1, 3, 64, 64, generator=generator)
    tokens = torch.randint(101, (4, 2, 10), generator=generator)
    rows = torch.arange(80).view(8, 10)[:, :-1].flatten()
    return images.to(device, dtype), tokens.to(device), rows.to(device)


def losses(run: RunConfig, ds_config: dict[str, Any], device: torch.device, steps: int = 3) -> list[float]:
    """Mean token loss of each of some steps on one batch, from the same first weights."""
    deferred = deferred_model(run)
    materialised = materialise_model(deferred, run, deferred.first_value, ds_config, Topology(), device)
    groups = parameter_groups(materialised.model, materialised.shapes, run.optimizer)
    engine = Engine(materialised, groups, run, ds_config, Topology(), device)
    engine.model.train()
    images, tokens, rows = inputs(device, engine.dtype)
    labels = tokens.flatten()[rows + 1]
    found = []
    for _ in range(steps):
        loss = language_model_loss(engine.forward(images, tokens, rows), labels, 0.1) / len(labels)
        engine.backward(loss)
        report = engine.step()
        assert report is not None
        assert not report.skipped
        found.append(float(loss.detach()))
    return found


@requires_gpu
def test_bf16_follows_fp32(device: torch.device) -> None:
    exact = losses(small_run("train.precision=fp32"), {}, device)
    assert exact[2] < 0.97 * exact[0]  # the steps do something: standing still would not pass for following
    zero1 = {"zero_optimization": {"stage": 1}}
    assert losses(small_run("train.precision=bf16"), zero1, device) == pytest.approx(exact, rel=0.02)


@requires_gpu
def test_zero3_is_plain_data_parallelism(device: torch.device) -> None:
    run = small_run("train.precision=fp32")
    assert losses(run, ZERO3, device) == pytest.approx(losses(run, {}, device), rel=1e-4)


@requires_gpu
def test_activation_checkpointing_changes_no_loss(device: torch.device) -> None:
    zero1 = {"zero_optimization": {"stage": 1}}
    plain, again = (
        losses(small_run("train.precision=bf16", f"train.activation_checkpointing={on}"), zero1, device)
        for on in ("false", "true")
    )
    assert all(map(math.isfinite, again))
    assert again == pytest.approx(plain, rel=1e-3)


@requires_gpu
def test_image_rows_take_the_flash_kernel(device: torch.device) -> None:
    model = build_model(small_run().model).to(device)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        with pytest.raises(RuntimeError):  # no flash in fp32: the restriction binds
            model(*inputs(device, torch.float32))
        logits = model.bfloat16()(*inputs(device, torch.bfloat16))
    assert logits.isfinite().all()
