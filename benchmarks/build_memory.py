"""Memory while a model is built under ZeRO-3: a rank's share, and no more than one module beside it.

    python tools/benchmark.py build_memory --json benchmarks/results/build_memory_cpu.json

Two gloo processes build git2 (5.15B parameters) in bf16 and partition it module by module. What counts is the peak of
each process's resident memory over what it had before, beside the share that stays. Takes some minutes and 12 GiB.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import torch

from git_scale.parallel.topology import Topology
from git_scale.testing.distributed import run_distributed

GIB = 2**30
RANKS = 2


def run(recipe: str = "git2", overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Figures of the rank that needed most."""
    reports = run_distributed(build, RANKS, recipe, overrides, timeout_s=1800)
    return max(reports, key=lambda report: report["peak over the start, GiB"])


def build(
    topology: Topology, device: torch.device, recipe: str, overrides: tuple[str, ...]
) -> dict[str, Any]:
    from git_scale.parallel.ds_config import read_ds_config
    from git_scale.parallel.materialise import materialise_model
    from git_scale.recipes import load_run
    from git_scale.training.init_model import deferred_model

    batch = f"train.global_batch={topology.dp}"
    run = load_run(recipe, [batch, "train.micro_batch=1", *overrides])
    deferred = deferred_model(run)
    sizes = [sum(p.numel() for p in module.parameters(recurse=False)) for module in deferred.module.modules()]
    ds_config = read_ds_config(Path(__file__).parents[1] / "ds_configs" / "zero3.json")
    before, started = reset_peak(), time.perf_counter()
    materialised = materialise_model(deferred, run, deferred.first_value, ds_config, topology, device)
    share = sum(p.ds_tensor.numel() * p.ds_tensor.element_size() for p in materialised.model.parameters())
    return {
        "recipe": recipe,
        "ranks": topology.world_size,
        "ZeRO stage": 3,
        "precision": run.train.precision,
        "parameters": sum(shape.numel() for shape in materialised.shapes.values()),
        "a rank's share, GiB": round(share / GIB, 3),
        "largest module in fp32, GiB": round(4 * max(sizes) / GIB, 3),
        "peak over the start, GiB": round((peak() - before) / GIB, 3),
        "over the share, GiB": round((peak() - before - share) / GIB, 3),
        "whole model in fp32, GiB": round(4 * sum(sizes) / GIB, 3),
        "build_s": round(time.perf_counter() - started, 1),
        "torch": torch.__version__,
    }


def reset_peak() -> int:
    """Bytes that are resident now; the kernel's peak starts anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak()


def peak() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])
