"""A checkpoint on shards of its own choice, on all ranks: what tools/evaluate.py does."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from git_scale.checkpoint.clip import with_image_size
from git_scale.checkpoint.opened import Opened, load_model, open_checkpoint, tokenizer_of
from git_scale.config import RunConfig
from git_scale.data.shards import open_shards
from git_scale.evaluation.evaluator import Evaluation, Evaluator
from git_scale.parallel.collectives import first_rank_first
from git_scale.parallel.engine import InferenceEngine, start_processes, stop_processes
from git_scale.parallel.topology import Topology
from git_scale.recipes import adjusted

log = logging.getLogger(__name__)


def evaluate_checkpoint(
    checkpoint: Path,
    data: Path,
    task: str | None,
    tokenizer: Path | None,
    overrides: list[str],
    ds_config: dict[str, Any],
    topology: Topology,
) -> Evaluation:
    """All samples of `data` (or the first `eval.images=N`). Collective; raises UserError, the same on all ranks."""
    opened = open_checkpoint(checkpoint)
    words = tokenizer_of(opened, tokenizer)
    run = benchmark_run(opened, data, task, overrides)
    device = start_processes(topology)
    shards = first_rank_first(topology, lambda: open_shards(data))
    if not any(text.startswith("eval.images=") for text in overrides):
        run = adjusted(run, [f"eval.images={len(shards)}"])
    dtype = torch.bfloat16 if device.type == "cuda" and run.train.precision == "bf16" else torch.float32
    resized = with_image_size(opened, run.model.encoder.image_size)
    runner = InferenceEngine(load_model(resized), ds_config, device, dtype)
    evaluation = Evaluator(run, shards, words, topology).evaluate(runner)
    stop_processes()
    for problem in evaluation.problems:
        log.warning("sample left out: %s", problem)
    return evaluation


def benchmark_run(opened: Opened, data: Path, task: str | None, overrides: list[str]) -> RunConfig:
    """The checkpoint's recipe with the benchmark's data and task. Raises ConfigError."""
    given = [f"data.heldout={data}"] + ([f"data.task={task}"] if task else [])
    return adjusted(opened.run, [*given, *overrides])
