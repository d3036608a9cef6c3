"""What a moving average of the weights costs: its share of a step of 32 images, under ZeRO 1 and 3.

    python tools/benchmark.py weight_average --json benchmarks/results/weight_average_cpu.json

Two gloo processes with a thread each train git_base in fp32 through the engine, on random images, with optimizer.ema.
The update of the average is timed within each step, so that other work on the machine slows both alike. Each rank
averages its half of the weights: nothing is exchanged. Takes some minutes and 10 GiB.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from benchmarks.synthetic import synthetic_batch
from git_scale.config import RunConfig
from git_scale.parallel.topology import Topology
from git_scale.recipes import load_run
from git_scale.testing.distributed import run_distributed

RANKS, STAGES = 2, (1, 3)
AIMS = {"share of a step": "<= 0.03"}

Seconds = tuple[float, float, float, float]
"""Of a step without the update and of the update: by wall clock, then CPU time."""


def run(
    recipe: str = "git_base",
    overrides: tuple[str, ...] = (),
    images: int = 32,
    micro_batch: int = 4,
    text_tokens: int = 20,
    steps: int = 3,
) -> dict[str, Any]:
    """Medians over `steps` steps after a first one, of the slower rank."""
    batch = [f"train.global_batch={images}", f"train.micro_batch={micro_batch}"]
    config = load_run(recipe, [*batch, "train.precision=fp32", "optimizer.ema=0.9999", *overrides])
    result: dict[str, Any] = {
        "recipe": recipe,
        "images": images,
        "text_tokens": text_tokens,
        "ranks": RANKS,
        "precision": "fp32",
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "aims": AIMS,
    }
    for stage in STAGES:
        of_ranks = run_distributed(measure, RANKS, config, stage, text_tokens, steps, timeout_s=3600)
        result[f"ZeRO {stage}"] = max(map(summarise, of_ranks), key=lambda found: found["share of a step"])
    return result


def summarise(times: list[Seconds]) -> dict[str, Any]:
    step, update, step_cpu, update_cpu = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "seconds of a step without it": round(step, 3),
        "seconds of the update": round(update, 4),
        "share of a step": round(update / step, 4),
        "share of a step by CPU time": round(update_cpu / step_cpu, 4),
        "of each step": [[round(value, 4) for value in row] for row in times],
    }


def measure(
    topology: Topology, device: torch.device, config: RunConfig, stage: int, text_tokens: int, steps: int
) -> list[Seconds]:
    from git_scale.objectives.training_loss import TrainingLoss, total
    from git_scale.parallel.engine import Engine
    from git_scale.parallel.materialise import materialise_model
    from git_scale.training.init_model import deferred_model
    from git_scale.training.optimizer import parameter_groups

    ds_config = {"zero_optimization": {"stage": stage}}
    deferred = deferred_model(config)
    materialised = materialise_model(deferred, config, deferred.first_value, ds_config, topology, device)
    groups = parameter_groups(materialised.model, materialised.shapes, config.optimizer)
    engine = Engine(materialised, groups, config, ds_config, topology, device)
    engine.model.train()
    average = engine.average
    assert average is not None
    plain, updates = average.update, list[tuple[float, float]]()

    def timed() -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        plain()
        updates.append((time.perf_counter() - wall, time.process_time() - cpu))

    average.update = timed  # type: ignore[method-assign]
    generator = torch.Generator().manual_seed(topology.dp_rank)
    batch = synthetic_batch(config.model, config.train.micro_batch, 1, text_tokens, generator)
    accumulation, loss = config.accumulation(topology.dp), TrainingLoss(config)
    counts = {"lm": accumulation * topology.dp * batch.num_targets}
    times: list[Seconds] = []
    for _ in range(1 + steps):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(accumulation):
            engine.backward(total(loss.of(engine.forward, batch, engine.dtype, counts, engine.comm)))
            engine.step()
        took = time.perf_counter() - wall, time.process_time() - cpu
        update = updates[-1]
        times.append((took[0] - update[0], update[0], took[1] - update[1], update[1]))
    return times[1:]
