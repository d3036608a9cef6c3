"""The stages of `make gpu-check`, what decides most first; each runs in a process of its own with a time of its own.

python -m benchmarks.gpu.stages attention           # one stage: a JSON object per result on stdout
python -m benchmarks.gpu.stages attention --tiny    # the same path with tiny shapes, on a CPU
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from benchmarks import generate
from benchmarks.gpu.attention import measure_attention
from benchmarks.gpu.other_trainers import measure_trainers
from benchmarks.gpu.shapes import FULL, TINY, BenchmarkShapes
from benchmarks.gpu.timeline import measure_timeline
from benchmarks.gpu.training import (
    BenchmarkSetting,
    Case,
    TrainingSession,
    measure_recipe,
    measure_settings,
    reason_to_skip,
    recipe_run,
)

PLAIN, COMPILED = BenchmarkSetting(), BenchmarkSetting(compile=True)
BF16_GRADIENTS = ("train.gradient_precision=bf16",)
Measure = Callable[[BenchmarkShapes, torch.device], Iterator[Case]]


@dataclass(frozen=True)
class BenchmarkStage:
    """Describes a stage. `measure` yields each result as soon as it is there; None: the tests marked gpu."""

    name: str
    set: int
    """1 to 3: those of a set take at most four minutes together, and the first set decides most."""
    budget_s: int
    shows: str
    measure: Measure | None


def timeline(shapes: BenchmarkShapes, device: torch.device) -> Iterator[Case]:
    session = TrainingSession("git_large", shapes, device)
    micro_batch = session.fitting_micro_batch(PLAIN)
    for setting in (PLAIN, COMPILED):
        yield measure_timeline(session, setting, micro_batch)


def base(shapes: BenchmarkShapes, device: torch.device) -> Iterator[Case]:
    session = TrainingSession("git_base", shapes, device)
    for micro_batch in shapes.base_micro_batches:
        for setting in (COMPILED, PLAIN):
            try:
                yield session.measure(setting, micro_batch)
            except torch.OutOfMemoryError:
                yield {"recipe": "git_base", "micro_batch": micro_batch, "skipped": "out of memory"}
                return


def large(shapes: BenchmarkShapes, device: torch.device) -> Iterator[Case]:
    settings = (
        PLAIN,
        COMPILED,
        BenchmarkSetting(texts=5, compile=True),
        BenchmarkSetting(activation_checkpointing=True),
        BenchmarkSetting(activation_checkpointing=True, compile=True),
        BenchmarkSetting(texts=5),
    )
    return measure_recipe("git_large", settings, shapes, device)


def large_bf16_gradients(shapes: BenchmarkShapes, device: torch.device) -> Iterator[Case]:
    return measure_recipe("git_large", (PLAIN, COMPILED), shapes, device, BF16_GRADIENTS)


def git2(shapes: BenchmarkShapes, device: torch.device) -> Iterator[Case]:
    """As published, and the profile with the share of the depthwise convolutions."""
    if reason := reason_to_skip(recipe_run("git2", shapes), device):
        yield {"recipe": "git2", "skipped": reason}
        return
    session = TrainingSession("git2", shapes, device)
    micro_batch = session.fitting_micro_batch(PLAIN)
    yield session.measure(PLAIN, micro_batch)
    yield measure_timeline(session, PLAIN, micro_batch)
    yield from measure_settings(session, (COMPILED, BenchmarkSetting(texts=5, compile=True)))


def git2_bf16_gradients(shapes: BenchmarkShapes, device: torch.device) -> Iterator[Case]:
    return measure_recipe("git2", (PLAIN, COMPILED), shapes, device, BF16_GRADIENTS)


def generation(shapes: BenchmarkShapes, device: torch.device) -> Iterator[Case]:
    found = generate.run(
        "git_base",
        shapes.recipes.get("git_base", ()),
        images=shapes.generate_images,
        new_tokens=shapes.new_tokens,
        budget_s=shapes.budget_s,
        device=device,
    )
    yield {name: value for name, value in found.items() if not isinstance(value, list)}


STAGES = (
    BenchmarkStage("tests", 1, 100, "the tests that need a GPU", None),
    BenchmarkStage("timeline", 1, 90, "where the time of a step of git_large goes", timeline),
    BenchmarkStage("attention", 1, 40, "attention at 256 and 257 tokens, by kernel", measure_attention),
    BenchmarkStage("base", 2, 60, "git_base with micro-batches of 128, 256 and 512", base),
    BenchmarkStage("large", 2, 85, "git_large as published", large),
    BenchmarkStage("large_bf16_gradients", 2, 40, "the same with gradients in bf16", large_bf16_gradients),
    BenchmarkStage(
        "trainers", 2, 55, "git_base trained by transformers, plain and compiled", measure_trainers
    ),
    BenchmarkStage("git2", 3, 105, "git2 as published, and its profile", git2),
    BenchmarkStage("git2_bf16_gradients", 3, 75, "the same with gradients in bf16", git2_bf16_gradients),
    BenchmarkStage("generation", 3, 60, "captions and answers beside transformers' generate", generation),
)


def main(argv: list[str]) -> None:
    from git_scale.parallel.engine import start_processes, stop_processes
    from git_scale.parallel.topology import topology_from

    logging.basicConfig(level=logging.WARNING)
    # Sizes change from case to case: without it the allocator's fragments take up to a tenth of the memory.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    (stage,) = (stage for stage in STAGES if stage.name == argv[0])
    assert stage.measure is not None
    device = start_processes(topology_from(os.environ))
    try:
        for result in stage.measure(TINY if "--tiny" in argv else FULL, device):
            print(json.dumps(result), flush=True)
    finally:
        stop_processes()


if __name__ == "__main__":
    main(sys.argv[1:])
