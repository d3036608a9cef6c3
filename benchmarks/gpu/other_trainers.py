"""A training step of transformers' GitForCausalLM with the weights and the batch of ours, plain and compiled."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.generate import copy_to_transformers
from benchmarks.gpu.shapes import BenchmarkShapes
from benchmarks.gpu.training import (
    BenchmarkSetting,
    Case,
    measure_recipe,
    peak_gib,
    recipe_run,
    reset_peak,
    synchronise,
)
from benchmarks.synthetic import synthetic_batch
from git_scale.config import RunConfig
from git_scale.data.batch import Batch
from git_scale.data.images import normalise
from git_scale.models.build import build_model

RECIPE = "git_base"  # transformers has published weights of that size


def measure_trainers(shapes: BenchmarkShapes, device: torch.device) -> Iterator[Case]:
    """Ours, then theirs at the same micro-batch, or at the largest half of it that fits them."""
    ours: Case = {}
    for ours in measure_recipe(RECIPE, (BenchmarkSetting(), BenchmarkSetting(compile=True)), shapes, device):
        yield {"trainer": "git_scale", **ours}
    if "micro_batch" not in ours:
        return
    run = recipe_run(RECIPE, shapes)
    torch.compiler.set_stance("default")
    model = copy_to_transformers(build_model(run.model), run.model).to(device, torch.bfloat16).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    for compiled in (False, True):
        step_model = torch.compile(model, backend=shapes.backend) if compiled else model
        yield from _fitting(step_model, optimizer, run, shapes, ours["micro_batch"], compiled, device)


def _fitting(
    model: Any,
    optimizer: torch.optim.Optimizer,
    run: RunConfig,
    shapes: BenchmarkShapes,
    micro_batch: int,
    compiled: bool,
    device: torch.device,
) -> Iterator[Case]:
    case = {"trainer": "transformers", "recipe": RECIPE, "compile": compiled}
    while micro_batch:
        generator = torch.Generator().manual_seed(0)
        batch = synthetic_batch(run.model, micro_batch, 1, shapes.text_tokens, generator).to(device)
        try:
            yield case | {"micro_batch": micro_batch, **_measure(model, optimizer, batch, shapes, device)}
            return
        except torch.OutOfMemoryError:
            optimizer.zero_grad()
            torch.cuda.empty_cache()
            micro_batch //= 2
    yield case | {"skipped": "out of memory with one image"}


def _measure(
    model: Any, optimizer: torch.optim.Optimizer, batch: Batch, shapes: BenchmarkShapes, device: torch.device
) -> Case:
    pixels, tokens = normalise(batch.images[:, 0], torch.bfloat16), batch.tokens[:, 0]

    def step() -> None:
        for _ in range(shapes.accumulation):
            found = model(pixel_values=pixels, input_ids=tokens, labels=tokens)
            (found.loss / shapes.accumulation).backward()
        optimizer.step()
        optimizer.zero_grad()

    reset_peak(device)
    for _ in range(shapes.warm_up):
        step()
    synchronise(device)
    started = time.perf_counter()
    for _ in range(shapes.timed):
        step()
    synchronise(device)
    step_s = (time.perf_counter() - started) / shapes.timed
    return {
        "accumulation": shapes.accumulation,
        "step_s": round(step_s, 5),
        "images_per_s": round(shapes.accumulation * len(tokens) / step_s, 1),
        "peak_gib": round(peak_gib(device), 2),
    }
