"""Runs that are killed at any moment and started again, beside one that nobody disturbs: the same to the bit.

    python tools/benchmark.py kills --json benchmarks/results/kills_cpu.json

Two ranks under torchrun, bf16 with gradients in fp32, ZeRO stage 2, dropout, two micro-batches per step, evaluations
with a best checkpoint. In each phase of a run (start, step, save, evaluation, marking the best) it is killed several
times, all of it or one rank alone; the same command then goes on. In the end weights, optimizer state, progress, the
losses of every step, the evaluations and the best checkpoint are compared with those of the undisturbed run.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from git_scale.parallel.topology import free_port
from git_scale.testing.tiny import tiny_run, write_squares_data

ROOT = Path(__file__).parents[1]
STEPS, SAVE_EVERY, EVALUATE_EVERY = 48, 4, 8
PHASES = ("start", "step", "save", "evaluation", "best")
AIMS = {"went on bit for bit": "all"}
START_S = 15.0  # a start takes about so long here
COMPARED = ("train/loss", "train/grad_norm", "progress/samples", "eval/loss", "eval/exact_match")
TIMEOUT_S = 300


def run(kills: int = 20, seed: int = 0) -> dict[str, Any]:
    """Kills take turns over the phases, in runs that go on until they are done."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_squares_data(root / "squares")
        undisturbed = KilledRun(root, "undisturbed")
        undisturbed.finish()
        expected = undisturbed.outcome()
        done, same, starts = Counter[str](), 0, 0
        while done.total() < kills:
            victim, killed = KilledRun(root, f"run_{starts}"), 0
            for phase in draw.sample(PHASES, len(PHASES)):
                if done.total() < kills and victim.kill_in(phase, draw):
                    done[phase] += 1
                    killed += 1
            victim.finish()
            starts += 1
            same += killed if victim.outcome() == expected else 0
    return {
        "kills": kills,
        "runs": starts,
        "steps of a run": STEPS,
        "went on bit for bit": same,
        **{f"kills in the phase {phase}": done[phase] for phase in PHASES},
        "aims": AIMS,
    }


class KilledRun:
    """Holds a run's folder and the command that goes on in it."""

    def __init__(self, root: Path, name: str) -> None:
        self.folder = root / name
        self.recipe = root / f"{name}.yaml"
        run = tiny_run(
            root / "squares",
            self.folder,
            train={
                "steps": STEPS,
                "global_batch": 8,
                "micro_batch": 2,
                "precision": "bf16",
            },
            eval={"every": EVALUATE_EVERY},
            checkpoint={"every": SAVE_EVERY, "best": "loss"},
            log={"every": 1},
        )
        decoder = run.model.decoder.model_copy(update={"dropout": 0.1})
        run = run.model_copy(update={"model": run.model.model_copy(update={"decoder": decoder})})
        self.recipe.write_text(run.to_yaml())

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
        command += [f"--master-port={free_port()}", str(ROOT / "tools" / "pretrain.py")]
        command += ["--config", str(self.recipe), "--ds_config", str(ROOT / "ds_configs" / "zero2.json")]
        with self.recipe.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=ROOT)

    def finish(self) -> None:
        """Raises RuntimeError when a start that nobody disturbs does not end well."""
        if code := self.start().wait(TIMEOUT_S):
            raise RuntimeError(f"exit code {code}:\n{self.recipe.with_suffix('.log').read_text()[-3000:]}")

    def kill_in(self, phase: str, draw: random.Random) -> bool:
        """Starts the run and kills it in a phase; False when it ended before that."""
        reached, delay_s = self._moment(phase, draw)
        process = self.start()
        deadline = time.monotonic() + TIMEOUT_S
        while process.poll() is None and not reached() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(delay_s)
        if process.poll() is not None:
            return False
        _kill(process, one_rank=draw.random() < 0.3)
        return True

    def _moment(self, phase: str, draw: random.Random) -> tuple[Callable[[], bool], float]:
        """When the phase has been reached, and how long after that to kill."""
        lines = len(self._lines())
        step = lines + draw.randrange(1, 6)
        checkpoints = self.folder / "checkpoints"
        if phase == "start":
            return (lambda: True), draw.uniform(0, START_S)
        if phase == "step":
            return (lambda: len(self._lines()) >= step), draw.uniform(0, 0.1)
        if phase == "save":
            return (lambda: any(checkpoints.glob(".step_*"))), draw.uniform(0, 0.05)
        evaluated = sum("eval/loss" in line for line in self._lines())
        if phase == "evaluation":
            due = {f"step_{number:08d}" for number in range(0, STEPS + 1, EVALUATE_EVERY)}
            there = {path.name for path in checkpoints.glob("step_*")}
            return (lambda: any(p.name in due - there for p in checkpoints.glob("step_*"))), draw.uniform(
                0, 0.2
            )
        return (lambda: sum("eval/loss" in line for line in self._lines()) > evaluated), draw.uniform(0, 0.02)

    def _lines(self) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def outcome(self) -> dict[str, Any]:
        """Everything that must be the same, by name."""
        last = sorted((self.folder / "checkpoints").glob("step_*"))[-1]
        found: dict[str, Any] = {
            str(path.relative_to(last)): path.read_bytes()
            for path in [*last.glob("state/*"), *last.glob("*.safetensors"), last / "progress.json"]
        }
        found["best"] = (self.folder / "checkpoints" / "best.json").read_text()
        for name in COMPARED:
            found[name] = [(line["step"], line[name]) for line in self._lines() if name in line]
        return found


def _kill(process: subprocess.Popen[bytes], one_rank: bool) -> None:
    """SIGKILL to the launcher and all ranks, or to one rank, after which the launcher ends the others."""
    children = psutil.Process(process.pid).children(recursive=True)
    victims = children[-1:] if one_rank and children else [*children, psutil.Process(process.pid)]
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    process.wait(TIMEOUT_S)
    psutil.wait_procs(children, TIMEOUT_S)
