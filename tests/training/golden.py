"""Losses and gradient norms of 20 steps that a change of the code must leave as they are.

    python tests/training/golden.py            compares bit for bit with golden.json (of the machine that wrote it)
    python tests/training/golden.py --write    writes golden.json anew: say in the commit which change was meant

A refactoring runs the first before each commit; test_golden.py compares with the tolerance that other machines need.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from git_scale.config import RunConfig
from git_scale.testing.curves import ZERO, Curve, train_curves
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import tiny_run, write_squares_data

FILE = Path(__file__).parent / "data" / "golden.json"
STEPS = 20
RANKS = 2
TASKS: dict[str, dict[str, Any]] = {"caption": {}, "vqa": {"texts_per_image": 2}}
DEGREES = (1, 2)


def golden_run(squares: Path, run_dir: Path, task: str, tp: int) -> RunConfig:
    """Dropout, two micro-batches or more per step, gradients that are clipped, decay, and a rate that moves."""
    run = tiny_run(
        squares,
        run_dir,
        data={"task": task, **TASKS[task]},
        train={"steps": STEPS, "micro_batch": 2},
        parallel={"tp": tp},
    )
    tree = run.model_dump(mode="json")
    tree["model"]["decoder"]["dropout"] = 0.1
    return RunConfig.model_validate(tree)


def golden_curves(squares: Path, folder: Path, task: str, tp: int, steps: int = STEPS) -> dict[str, Curve]:
    """By name: the first steps on two ranks under each ZeRO stage."""
    run = golden_run(squares, folder / f"{task}-tp{tp}", task, tp)
    first, *others = run_distributed(train_curves, RANKS, run, ZERO, steps, tp=tp)
    assert all(curves == first for curves in others), "the ranks disagree"
    return {f"{task} tp={tp} ZeRO-{stage}": curve for stage, curve in enumerate(first)}


def all_curves() -> dict[str, Curve]:
    with tempfile.TemporaryDirectory() as folder:
        squares = write_squares_data(Path(folder) / "squares")
        return {
            name: curve
            for task in TASKS
            for tp in DEGREES
            for name, curve in golden_curves(squares, Path(folder), task, tp).items()
        }


def machine() -> str:
    return f"{platform.machine()}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"


def read_golden() -> dict[str, Curve]:
    curves = json.loads(FILE.read_text(encoding="utf-8"))["curves"]
    return {name: [(loss, norm) for loss, norm in curve] for name, curve in curves.items()}


def write_golden(curves: dict[str, Curve]) -> None:
    """One step per line, every digit of the floats: a difference can be read in a diff."""
    FILE.write_text(
        json.dumps({"machine": machine(), "curves": curves}, indent=1)
        .replace("[\n    ", "[")
        .replace(",\n    ", ", ")
        .replace("\n   ]", "]")
        + "\n",
        encoding="utf-8",
    )


def main() -> int:
    found = all_curves()
    if sys.argv[1:] == ["--write"]:
        write_golden(found)
        return 0
    golden = read_golden()
    other = [name for name in golden.keys() | found.keys() if found.get(name) != golden.get(name)]
    for name in sorted(other):
        pairs = zip(found.get(name, []), golden.get(name, []), strict=False)
        step = next((number for number, (new, old) in enumerate(pairs, 1) if new != old), 0)
        print(f"{name}: other than golden from step {step} on")
    print(f"{len(golden) - len(other)} of {len(golden)} curves are the same bit for bit ({machine()})")
    return 1 if other else 0


if __name__ == "__main__":
    sys.exit(main())
