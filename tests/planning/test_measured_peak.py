"""The planned peak against the peak of real steps: resident memory on CPU, the allocator's on a GPU."""

from __future__ import annotations

import ctypes
import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from git_scale.config import RunConfig
from git_scale.data.batch import Batch
from git_scale.objectives.training_loss import TrainingLoss, total
from git_scale.parallel.engine import Engine
from git_scale.parallel.materialise import materialise_model
from git_scale.parallel.topology import Topology
from git_scale.planning.cluster import this_cluster
from git_scale.planning.estimate import estimate_setting, setting_of
from git_scale.recipes import adjusted, load_run
from git_scale.testing.distributed import run_distributed
from git_scale.testing.gpu import requires_gpu
from git_scale.training.init_model import deferred_model
from git_scale.training.optimizer import parameter_groups

DS_CONFIGS = Path(__file__).parents[2] / "ds_configs"
MIB = 2**20
SMALL = [
    "model.encoder.name=vit_tiny_patch16_224",
    "model.decoder={layers: 2, width: 256, heads: 8, ffn: 1024}",
    "model.vocab_size=2000",
    "train.precision=fp32",
]
TINY = [
    "model.encoder.name=vit_tiny_patch16_224",
    "model.encoder.options={depth: 1, embed_dim: 64, num_heads: 4}",
    "model.decoder={layers: 1, width: 64, heads: 4, ffn: 64}",
    "model.vocab_size=48",
]


MOSTLY_TEXT = [
    "model.encoder.options={depth: 1}",
    "model.decoder={layers: 4, width: 256, heads: 8, ffn: 1024}",
    "data.texts_per_image=8",
]
AVERAGED = [
    "model.encoder.options={depth: 2}",
    "model.decoder={layers: 4, width: 512, heads: 8, ffn: 2048}",
    "model.vocab_size=20000",
    "optimizer.ema=0.9999",
]
"""States are the most of it: the average is a fifth of those of a process alone."""


def a_run(world_size: int, micro_batch: int, *overrides: str) -> RunConfig:
    batch = [f"train.micro_batch={micro_batch}", f"train.global_batch={world_size * micro_batch}"]
    return load_run("git_base", [*SMALL, *batch, *overrides])


def ds_config_of(stage: int) -> dict[str, Any]:
    return json.loads((DS_CONFIGS / f"zero{stage}.json").read_text()) if stage else {}


def train(run: RunConfig, ds_config: dict[str, Any], topology: Topology, device: torch.device) -> None:
    """Two steps on random numbers: in the second, ZeRO-3 knows what is needed when, and gathers ahead."""
    deferred = deferred_model(run)
    materialised = materialise_model(deferred, run, deferred.first_value, ds_config, topology, device)
    groups = parameter_groups(materialised.model, materialised.shapes, run.optimizer)
    engine = Engine(materialised, groups, run, ds_config, topology, device)
    del materialised, deferred
    engine.model.train()
    size, texts = run.model.encoder.image_size, run.data.texts_per_image
    length, pictures = run.data.max_text_tokens, run.train.micro_batch
    for _ in range(2 * run.accumulation(topology.dp)):
        images = torch.randint(255, (pictures, 1, 3, size, size), dtype=torch.uint8, device=device)
        tokens = torch.randint(run.model.vocab_size, (pictures, texts, length), device=device)
        rows = torch.arange(pictures * texts * (length - 1), device=device)
        batch = Batch(images, tokens, rows, tokens.flatten()[rows], keys=[], problems=[])
        losses = TrainingLoss(run).of(engine.forward, batch, engine.dtype, {"lm": len(rows)}, engine.comm)
        engine.backward(total(losses))
        engine.step()


def resident_peak(topology: Topology, device: torch.device, run: RunConfig, ds_config: dict[str, Any]) -> int:
    """Bytes that training adds to this process at its highest."""
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 65536)  # M_MMAP_THRESHOLD: what is freed is given back, so that memory is what is in use
    topology = topology.with_tp(run.parallel.tp)
    tiny = load_run("git_base", [*SMALL, *TINY, f"train.global_batch={topology.dp}", "train.micro_batch=1"])
    tiny = tiny.model_copy(update={"parallel": run.parallel})
    train(tiny, ds_config, topology, device)  # what is loaded and made once is not the run's
    gc.collect()
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before = memory_of("VmRSS")
    train(run, ds_config, topology, device)
    return memory_of("VmHWM") - before


def memory_of(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def planned_peak(run: RunConfig, ds_config: dict[str, Any], device: torch.device, world_size: int) -> int:
    cluster = this_cluster(device, run.train.precision, world_size)
    return estimate_setting(run, ds_config, cluster, setting_of(run, ds_config)).memory.total


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("world_size", "stage", "micro_batch", "overrides"),
    [
        pytest.param(1, 0, 16, ["model.encoder.options={depth: 3}"], id="alone"),
        pytest.param(
            2, 3, 4, ["model.encoder.options={depth: 3}", "model.vocab_size=30000"], id="zero3-on-two-ranks"
        ),
        pytest.param(
            1,
            0,
            32,
            ["model.encoder.options={depth: 4}", "train.activation_checkpointing=true"],
            id="checkpointing",
        ),
        pytest.param(1, 0, 4, [*MOSTLY_TEXT, "model.decoder.attention=cross"], id="cross-attention"),
        pytest.param(1, 0, 2, AVERAGED, id="average"),
        pytest.param(2, 3, 2, AVERAGED, id="average-zero3-on-two-ranks"),
    ],
)
def test_planned_peak_is_the_measured_one(
    world_size: int, stage: int, micro_batch: int, overrides: list[str]
) -> None:
    run, ds_config = a_run(world_size, micro_batch, *overrides), ds_config_of(stage)
    measured = max(run_distributed(resident_peak, world_size, run, ds_config))
    planned = planned_peak(run, ds_config, torch.device("cpu"), world_size)
    assert measured > 300 * MIB  # enough for a process's own noise not to count
    assert planned == pytest.approx(measured, rel=0.1)


def test_what_is_wrongly_planned_would_be_noticed() -> None:
    """A plan with one switch, stage or size wrong is further away than the tolerance above."""
    run = a_run(1, 12, "model.encoder.options={depth: 3}")
    right = planned_peak(run, {}, torch.device("cpu"), 1)
    of_text = a_run(1, 4, *MOSTLY_TEXT)
    crossed = planned_peak(adjusted(of_text, ["model.decoder.attention=cross"]), {}, torch.device("cpu"), 1)
    assert planned_peak(of_text, {}, torch.device("cpu"), 1) != pytest.approx(crossed, rel=0.1)
    for wrong, stage in [
        (a_run(1, 12, "model.encoder.options={depth: 3}", "train.activation_checkpointing=true"), 0),
        (a_run(1, 12, "model.encoder.options={depth: 3}", "model.decoder.dropout=0.0"), 0),
        (a_run(1, 10, "model.encoder.options={depth: 3}"), 0),
        (run, 3),
    ]:
        planned = planned_peak(wrong, ds_config_of(stage), torch.device("cpu"), 1)
        assert planned != pytest.approx(right, rel=0.1)


def test_an_average_that_is_not_planned_would_be_noticed() -> None:
    right, wrong = (
        planned_peak(a_run(1, 2, *given), {}, torch.device("cpu"), 1) for given in (AVERAGED, AVERAGED[:-1])
    )
    assert wrong != pytest.approx(right, rel=0.1)


def allocated_peak(
    topology: Topology, device: torch.device, run: RunConfig, ds_config: dict[str, Any]
) -> int:
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    train(run, ds_config, topology, device)
    return torch.cuda.max_memory_allocated(device) - before


@requires_gpu
@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_planned_peak_is_what_cuda_allocated(stage: int, checkpointing: str) -> None:
    overrides = ["train.global_batch=64", f"train.activation_checkpointing={checkpointing}"]
    run, ds_config = load_run("git_base", overrides), ds_config_of(stage)
    device = torch.device("cuda", 0)
    (measured,) = run_distributed(allocated_peak, 1, run, ds_config)
    assert planned_peak(run, ds_config, device, 1) == pytest.approx(measured, rel=0.1)
