"""The demo's recipe with a small DaViT: 200 steps with tensor parallelism follow those without, to the same captions.

    python tools/benchmark.py tensor_parallel --json benchmarks/results/tensor_parallel_cpu.json

Needs the demo's data (`make demo`). Both runs have two data-parallel ranks under ZeRO-3 and see the same samples; one
splits every layer over two more ranks. What differs is the order of sums. Takes ten minutes on two cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from git_scale import load
from git_scale.data.images import decode
from git_scale.data.store import open_store
from git_scale.recipes import load_run

ROOT = Path(__file__).parents[1]
STEPS, SCENES, BATCH = 200, 200, 50
OVERRIDES = (
    "model.encoder.name=davit_tiny",
    "model.encoder.options={depths: [1, 1], embed_dims: [32, 64], num_heads: [2, 4], window_size: 4}",
    "optimizer.encoder_lr=2e-3",
    "data.workers=0",
    f"train.steps={STEPS}",
    f"eval.every={STEPS}",
    "eval.images=8",
    f"checkpoint.every={STEPS}",
    "log.every=1",
)
AIMS = {"largest relative difference of a loss": "<= 1e-3", "same captions": ">= 0.99"}


def run() -> dict[str, Any]:
    """Trains both; raises CalledProcessError when one fails."""
    with tempfile.TemporaryDirectory() as folder:
        plain, split = (train(Path(folder) / f"tp{tp}", tp) for tp in (1, 2))
        losses = list(zip(read_losses(plain), read_losses(split), strict=True))
        texts = list(zip(captions(plain), captions(split), strict=True))
    differences = [abs(one - other) / one for one, other in losses]
    same = sum(one == other for one, other in texts) / len(texts)
    return {
        "recipe": "demo",
        "encoder": "davit, 2 stages of widths 32 and 64",
        "steps": len(losses),
        "ranks": "dp 2 x tp 1, dp 2 x tp 2",
        "ZeRO stage": 3,
        "precision": "fp32",
        "torch": torch.__version__,
        "first loss": losses[0][0],
        "last loss, tp 1": losses[-1][0],
        "last loss, tp 2": losses[-1][1],
        "largest relative difference of a loss": float(f"{max(differences):.3g}"),
        "held-out scenes": len(texts),
        "distinct captions": len({one for one, _ in texts}),
        "same captions": round(same, 4),
        "aims": AIMS,
    }


def train(run_dir: Path, tp: int) -> Path:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={2 * tp}"]
    command += ["tools/pretrain.py", "--config", "demo", "--ds_config", "ds_configs/zero3.json"]
    command += [f"run_dir={run_dir}", f"parallel.tp={tp}", *OVERRIDES]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    return run_dir


def read_losses(run_dir: Path) -> list[float]:
    """Of each step."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["train/loss"] for row in map(json.loads, lines) if "train/loss" in row]


def captions(run_dir: Path) -> list[str]:
    """Of the first held-out scenes, greedy, by a single process."""
    scenes = open_store(ROOT / str(load_run("demo", []).data.heldout))
    pictures = [decode(image) for number in range(SCENES) if (image := scenes.read(number).image)]
    model = load(run_dir)
    return [
        text
        for first in range(0, len(pictures), BATCH)
        for text in model.caption(pictures[first : first + BATCH], beams=1)
    ]
