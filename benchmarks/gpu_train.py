"""Training steps on one GPU through the DeepSpeed engine: images/s, model FLOP utilisation, peak memory.

    python -m benchmarks.gpu_train git_base

bf16, ZeRO stage 1, synthetic pictures at the recipe's size, texts of 40 tokens, dropout as in the recipe, four
micro-batches per step. Each recipe is measured with 1 and 5 texts per image, with and without activation
checkpointing, plain and compiled (train.compile). One JSON object per case goes to stdout as soon as it is measured,
so that a stopped run keeps what it has.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.synthetic import synthetic_batch
from git_scale.config import RunConfig
from git_scale.data.batch import Batch
from git_scale.data.images import normalise
from git_scale.models.compiled import compile_blocks
from git_scale.models.deferred import Deferred
from git_scale.models.git import GitModel, count_parameters, language_model_loss
from git_scale.monitoring.peak import peak_flops
from git_scale.parallel.ds_config import read_ds_config
from git_scale.parallel.engine import Engine, start_processes, stop_processes
from git_scale.parallel.materialise import place_model
from git_scale.parallel.topology import Topology, topology_from
from git_scale.recipes import load_run
from git_scale.training.costs import StepCosts
from git_scale.training.optimizer import parameter_groups
from git_scale.training.start import build_model

DS_CONFIG = Path(__file__).parents[1] / "ds_configs" / "zero1.json"
GIB = 2**30
TEXT_TOKENS = 40
ACCUMULATION = 4  # micro-batches per step: as many are the recipes' 4096 images on 8 GPUs, 128 at a time
WARM_UP, TIMED = 1, 2  # steps
MICRO_BATCHES = (128, 96, 64, 48, 32, 24, 16, 8)
PROBES = (4, 8)  # images; two points of the straight line memory(images)
MEMORY_SHARE = 0.9  # of the GPU; the rest is left to fragments and to CUDA itself
STATE_BYTES = 18  # per parameter: bf16 weight and gradient, fp32 master, two moments, 2 for buffers

Case = dict[str, Any]


def run(recipes: tuple[str, ...] = ("git_base", "git_large", "git2")) -> dict[str, Any]:
    """All recipes one after the other. Needs a CUDA GPU."""
    topology = topology_from(os.environ)
    device = start_processes(topology)
    try:
        return {
            recipe: {f"case {n}": case for n, case in enumerate(measure_recipe(recipe, topology, device))}
            for recipe in recipes
        }
    finally:
        stop_processes()


@dataclass(frozen=True)
class Setting:
    """What a case varies."""

    texts: int = 1
    activation_checkpointing: bool = False
    compile: bool = False


# What matters most first: a run may be stopped before the end.
SETTINGS = (
    Setting(),
    Setting(compile=True),
    Setting(texts=5, compile=True),
    Setting(activation_checkpointing=True),
    Setting(activation_checkpointing=True, compile=True),
    Setting(texts=5),
)


def measure_recipe(
    recipe: str, topology: Topology, device: torch.device, overrides: tuple[str, ...] = ()
) -> Iterator[Case]:
    """The cases of one recipe, each as soon as it is measured; a case without room holds its reason."""
    run = load_run(recipe, [f"train.global_batch={ACCUMULATION}", "train.micro_batch=1", *overrides])
    if reason := reason_to_skip(run, device):
        yield {"recipe": recipe, "skipped": reason}
        return
    ds_config = read_ds_config(DS_CONFIG)
    deferred = build_model(run)
    values = functools.partial(quick_value, deferred, device)
    placed = place_model(deferred, run, values, ds_config, topology, device)
    groups = parameter_groups(placed.model, placed.shapes, run.optimizer)
    engine = Engine(placed, groups, run, ds_config, topology, device)
    engine.model.train()
    model = placed.model
    compile_blocks(model)
    torch.compiler.set_stance("force_eager")
    train_step(run, engine, make_batch(run, 1, 1, device))  # the first step makes the optimizer's states
    micro_batches: dict[tuple[int, bool], int] = {}
    for setting in SETTINGS:
        case = {"recipe": recipe, **asdict(setting)}
        shape = (setting.texts, setting.activation_checkpointing)
        model.set_activation_checkpointing(setting.activation_checkpointing)
        try:
            if shape not in micro_batches:
                # Fitted once, plain: compiled blocks take no more memory, but compile anew for each size.
                torch.compiler.set_stance("force_eager")
                micro_batches[shape] = fitting_micro_batch(run, engine, setting.texts)
            torch.compiler.set_stance("default" if setting.compile else "force_eager")
            yield case | measure_case(run, engine, setting.texts, micro_batches[shape])
        except torch.OutOfMemoryError as error:
            yield case | {"skipped": f"out of memory: {str(error).splitlines()[0]}"}
            return  # gradients of half a backward pass are in the engine


def quick_value(deferred: Deferred, device: torch.device, name: str) -> torch.Tensor:
    """Matrices at random on the GPU: seconds for billions of numbers, where a CPU takes a minute."""
    shape = deferred.shape(name)
    if len(shape) < 2:
        return deferred.first_value(name)
    return torch.empty(shape, device=device).normal_(std=0.02)


def reason_to_skip(run: RunConfig, device: torch.device) -> str | None:
    """Why the model's states cannot fit, before minutes go into building them."""
    with torch.device("meta"):
        parameters = count_parameters(GitModel(run.model))
    needed, room = parameters * STATE_BYTES / GIB, MEMORY_SHARE * memory_gib(device)
    if needed <= room:
        return None
    return f"{parameters / 1e9:.2f}B parameters need {needed:.0f} GiB for their states, {room:.0f} GiB are usable"


def measure_case(run: RunConfig, engine: Engine, texts: int, micro_batch: int) -> Case:
    batch = make_batch(run, micro_batch, texts, engine.device)
    reset_peak(engine.device)
    started = time.perf_counter()
    losses = [train_step(run, engine, batch) for _ in range(WARM_UP)]
    synchronise(engine.device)
    warm = time.perf_counter()
    losses += [train_step(run, engine, batch) for _ in range(TIMED)]
    synchronise(engine.device)
    step_s = (time.perf_counter() - warm) / TIMED
    images = ACCUMULATION * micro_batch
    flops = StepCosts(run.model, dp=1).train_flops([batch] * ACCUMULATION)
    return {
        "micro_batch": micro_batch,
        "accumulation": ACCUMULATION,
        "text_tokens": TEXT_TOKENS,
        "warm_up_s": round(warm - started, 1),
        "step_s": round(step_s, 5),
        "images_per_s": round(images / step_s, 1),
        "model_tflops_per_s": round(flops / step_s / 1e12, 2),
        "mfu": round(flops / step_s / peak_flops(engine.device, run.train.precision), 4),
        "peak_gib": round(peak_gib(engine.device), 2),
        "first_loss": round(float(losses[0]), 4),
        "last_loss": round(float(losses[-1]), 4),
    }


def fitting_micro_batch(run: RunConfig, engine: Engine, texts: int) -> int:
    """The largest of MICRO_BATCHES whose forward and backward pass, extrapolated from two small ones, fit."""
    peaks = []
    for images in PROBES:
        batch = make_batch(run, images, texts, engine.device)
        for number in range(ACCUMULATION):
            reset_peak(engine.device)
            engine.backward(micro_loss(run, engine, batch))
            if number == 1:  # all gradients are there already
                peaks.append(peak_gib(engine.device))
            engine.step()
    per_image = (peaks[1] - peaks[0]) / (PROBES[1] - PROBES[0])
    room = MEMORY_SHARE * memory_gib(engine.device) - peaks[1]
    fitting = [size for size in MICRO_BATCHES if (size - PROBES[1]) * per_image <= room]
    return fitting[0] if fitting else PROBES[0]


def train_step(run: RunConfig, engine: Engine, batch: Batch) -> torch.Tensor:
    """One step of ACCUMULATION micro-batches as the trainer does it; the pictures lie on the GPU already."""
    loss = torch.zeros(())
    for _ in range(ACCUMULATION):
        loss = micro_loss(run, engine, batch)
        engine.backward(loss)
        engine.step()
    return loss.detach()


def micro_loss(run: RunConfig, engine: Engine, batch: Batch) -> torch.Tensor:
    rows, labels = batch.target_rows()
    logits = engine.forward(normalise(batch.images, engine.dtype), batch.tokens, rows)
    return language_model_loss(logits, labels, run.train.label_smoothing) / (ACCUMULATION * len(labels))


def make_batch(run: RunConfig, images: int, texts: int, device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return synthetic_batch(run.model, images, texts, TEXT_TOKENS, generator).to(device)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float:
    """Most memory that tensors held since `reset_peak`; 0 on the CPU, where torch does not count it."""
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else 0.0


def memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / GIB
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    # Sizes change from case to case: without it the allocator's fragments take up to a tenth of the memory.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    topology = topology_from(os.environ)
    device = start_processes(topology)
    try:
        for case in measure_recipe(sys.argv[1], topology, device):
            print(json.dumps(case), flush=True)
    finally:
        stop_processes()


if __name__ == "__main__":
    main()
