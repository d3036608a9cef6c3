"""The planned peak against the peak of real steps: resident memory on CPU, the allocator's on a GPU."""

from __future__ import annotations

import ctypes
import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from git_scale.config import RunConfig
from git_scale.data.batch import Batch, Sample, collate
from git_scale.objectives.training_loss import TrainingLoss, total
from git_scale.parallel.engine import Engine
from git_scale.parallel.materialise import materialise_model
from git_scale.parallel.topology import Topology
from git_scale.planning.cluster import this_cluster
from git_scale.planning.estimate import estimate_setting, setting_of
from git_scale.planning.longest_text import longest_examples, share_with_images
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
HALF_TEXT = ["data.train=null", "data.sources=[{path: a}, {path: b, task: text_only}]"]
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
    loss, counts = TrainingLoss(run), dict.fromkeys(run.train.objectives, run.train.micro_batch)
    for number in range(2 * run.accumulation(topology.dp)):
        batch = random_batch(run, number).to(device)
        engine.backward(total(loss.of(engine.forward, batch, engine.dtype, counts, engine.comm)))
        engine.step()


def random_batch(run: RunConfig, seed: int) -> Batch:
    """Texts that are as long as may be, with images of noise, but of the samples that the run has without one."""
    draw = np.random.default_rng(seed)
    size, frames = run.model.encoder.image_size, run.model.frames
    texts = [longest_examples(run)] * run.data.texts_per_image
    with_images = share_with_images(run) * run.train.micro_batch
    samples = []
    for number in range(run.train.micro_batch):
        images = draw.integers(255, size=(frames, 3, size, size), dtype=np.uint8)
        samples.append(Sample("", images, texts, draw=number, has_image=number < with_images))
    return collate(samples)


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
            marks=pytest.mark.proof,
        ),
        pytest.param(1, 0, 4, [*MOSTLY_TEXT, "model.decoder.attention=cross"], id="cross-attention"),
        pytest.param(
            1,
            0,
            4,
            [*MOSTLY_TEXT, "train.objectives={lm: 1.0, masked_lm: 1.0}"],
            id="masked-words",
            marks=pytest.mark.proof,
        ),
        pytest.param(1, 0, 8, [*MOSTLY_TEXT, *HALF_TEXT], id="text-alone", marks=pytest.mark.proof),
        pytest.param(
            1,
            0,
            32,
            ["model.encoder.options={depth: 3}", "model.encoder.patch_drop_rate=0.5"],
            id="patches-left-out",
            marks=pytest.mark.proof,
        ),
        pytest.param(1, 0, 2, AVERAGED, id="average", marks=pytest.mark.proof),
        pytest.param(2, 3, 2, AVERAGED, id="average-zero3-on-two-ranks", marks=pytest.mark.proof),
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
    for other in ("model.decoder.attention=cross", "train.objectives={lm: 1.0, masked_lm: 1.0}"):
        changed = planned_peak(adjusted(of_text, [other]), {}, torch.device("cpu"), 1)
        assert planned_peak(of_text, {}, torch.device("cpu"), 1) != pytest.approx(changed, rel=0.1)
    for wrong, stage in [
        (a_run(1, 12, "model.encoder.options={depth: 3}", "train.activation_checkpointing=true"), 0),
        (a_run(1, 12, "model.encoder.options={depth: 3}", "model.decoder.dropout=0.0"), 0),
        (a_run(1, 10, "model.encoder.options={depth: 3}"), 0),
        (a_run(1, 12, "model.encoder.options={depth: 3}", "model.encoder.patch_drop_rate=0.5"), 0),
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
