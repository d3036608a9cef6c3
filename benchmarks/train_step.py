"""One training step of git_base on the CPU beside the plain matrix products that it is made of.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive \\
        python tools/benchmark.py train_step --json benchmarks/results/train_step_cpu.json

A step is forward + backward + AdamW in fp32, dropout as in the recipe, one micro-batch of synthetic images.
Steps with 1 and with 5 texts per image take turns with the products, so that other work on the machine slows
all three alike; where it comes and goes, the CPU time says more than the wall clock. Passive waiting keeps
threads from burning that time at barriers while their partner is not scheduled.
attained = model FLOP/s of the step / FLOP/s of the products alone.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from typing import Any

import torch

from benchmarks.products import Product, ProductReplay, count_flops, record_products
from benchmarks.synthetic import synthetic_batch
from git_scale.config import RunConfig
from git_scale.data.batch import Batch
from git_scale.models.build import build_model
from git_scale.models.git import GitModel
from git_scale.objectives.training_loss import loss_alone
from git_scale.planning.model_flops import ModelFlops
from git_scale.recipes import load_run
from git_scale.training.optimizer import parameter_groups

AIMS = {"attained with 1 text": ">= 0.70", "step with 5 / step with 1": "<= 1.30"}


def run(
    recipe: str = "git_base",
    overrides: tuple[str, ...] = (),
    images: int = 4,
    text_tokens: int = 20,
    threads: int = 2,
    budget_s: float = 150,
) -> dict[str, Any]:
    """Seconds per step, rates and ratios: medians over the rounds that fit `budget_s`, after one to warm up."""
    torch.set_num_threads(threads)
    config = load_run(recipe, overrides)
    generator = torch.Generator().manual_seed(0)
    batches = {k: synthetic_batch(config.model, images, k, text_tokens, generator) for k in (1, 5)}
    model_flops = ModelFlops(config.model)
    flops = {f"step with {k}": model_flops.of_step([batch]) for k, batch in batches.items()}
    products = step_products(config, batches[1])
    flops["products"] = count_flops(products)
    times = measure(config, batches, ProductReplay(products), budget_s)
    return {
        "recipe": recipe,
        "images": images,
        "image_size": config.model.encoder.image_size,
        "text_tokens": text_tokens,
        "precision": "fp32",
        "optimizer": "AdamW, fused",
        "threads": threads,
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "rounds": len(times["products"]),
        "products' share of the step's FLOPs": round(flops["products"] / flops["step with 1"], 3),
        "by wall clock": summarise(flops, {name: [wall for wall, _ in times[name]] for name in times}),
        "by CPU time": summarise(flops, {name: [cpu for _, cpu in times[name]] for name in times}),
        "aims": AIMS,
        "wall and CPU seconds of each round": {
            name: [[round(wall, 3), round(cpu, 3)] for wall, cpu in times[name]] for name in times
        },
    }


def summarise(flops: dict[str, int], times: dict[str, list[float]]) -> dict[str, float]:
    """Medians of the times and the ratios between them."""
    seconds = {name: statistics.median(values) for name, values in times.items()}
    rate = {name: flops[name] / seconds[name] for name in seconds}
    return {
        **{f"seconds, {name}": round(value, 3) for name, value in seconds.items()},
        **{f"GFLOP/s, {name}": round(value / 1e9, 1) for name, value in rate.items()},
        "attained with 1 text": round(rate["step with 1"] / rate["products"], 3),
        "attained with 5 texts": round(rate["step with 5"] / rate["products"], 3),
        "step with 5 / step with 1": round(seconds["step with 5"] / seconds["step with 1"], 3),
    }


def measure(
    config: RunConfig, batches: dict[int, Batch], replay: ProductReplay, budget_s: float
) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU seconds of a step with 1 text, of one with 5 and of the products, one of each per round."""
    torch.manual_seed(config.seed)
    model = build_model(config.model).train()
    optimizer = torch.optim.AdamW(
        parameter_groups(model, {name: p.shape for name, p in model.named_parameters()}, config.optimizer),
        betas=config.optimizer.betas,
        fused=True,
    )
    actions = {
        "step with 1": lambda: train_step(config, model, optimizer, batches[1]),
        "products": replay.run,
        "step with 5": lambda: train_step(config, model, optimizer, batches[5]),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    deadline = time.perf_counter() + budget_s
    for action in actions.values():
        action()
    while not times["products"] or time.perf_counter() < deadline:
        for name, action in actions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            action()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return times


def train_step(run: RunConfig, model: GitModel, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    loss_alone(run, model, batch, torch.float32).backward()
    optimizer.step()
    optimizer.zero_grad()


def step_products(run: RunConfig, batch: Batch) -> Counter[Product]:
    """The products of one step forward and backward, from running it on `meta`."""
    with torch.device("meta"):
        model = build_model(run.model).train()
    shapes = batch.to("meta")
    return record_products(lambda: loss_alone(run, model, shapes, torch.float32).backward())
