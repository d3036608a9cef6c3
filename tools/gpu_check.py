"""The checks that need a CUDA GPU, in at most 8 minutes: the gpu-marked tests, then the GPU benchmarks.

    make gpu-check PYTHON=python3

Runs with the interpreter that it is given, sets nothing up and needs no network. Prints as it goes; what has been
found so far is always in benchmarks/results/gpu.json. Exit codes: 0 nothing failed, 1 something failed, 2 no GPU.
A part that was not run is named so and is no success.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # nothing is installed there

from git_scale.console import tool  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
TESTS_BUDGET_S = 110
# Seconds for each recipe's process, its imports included; the whole stays below 8 minutes.
BENCHMARK_BUDGETS_S = {"git_base": 90, "git_large": 110, "git2": 160}
NEEDED = ("deepspeed", "timm", "pydantic", "yaml", "numpy", "PIL", "xxhash")

Report = dict[str, Any]


@tool
def main(argv: list[str] | None = None) -> int:
    if not torch.cuda.is_available():
        print("gpu-check needs a CUDA GPU, and torch finds none: nothing was run.", file=sys.stderr)
        return 2
    if missing := [name for name in NEEDED if not importlib.util.find_spec(name)]:
        print(f"gpu-check: {sys.executable} lacks {', '.join(missing)}: nothing was run.", file=sys.stderr)
        return 2
    started = time.monotonic()
    report = describe_machine()
    report["tests"] = run_tests()
    write(report)
    for recipe, budget_s in BENCHMARK_BUDGETS_S.items():
        print(f"== benchmark {recipe}, at most {budget_s} s", flush=True)
        report[recipe] = {"cases": []}
        for line in run_part(
            [sys.executable, "-m", "benchmarks.gpu_train", recipe], budget_s, report[recipe]
        ):
            print(line, flush=True)
            if line.startswith("{"):
                report[recipe]["cases"].append(json.loads(line))
                write(report)
        write(report)
    report["seconds"] = round(time.monotonic() - started, 1)
    write(report)
    outcomes = {name: report[name]["outcome"] for name in ("tests", *BENCHMARK_BUDGETS_S)}
    print(f"== {outcomes}\n== {RESULTS}")
    return int(any(not outcome.startswith(("done", "not run")) for outcome in outcomes.values()))


def describe_machine() -> Report:
    gpu = torch.cuda.get_device_properties(0)
    return {
        "gpu": gpu.name,
        "memory_gib": round(gpu.total_memory / 2**30, 1),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
    }


def run_tests() -> Report:
    """The tests marked gpu; `outcome` is done only when pytest ran and all of them passed."""
    print(f"== tests marked gpu, at most {TESTS_BUDGET_S} s", flush=True)
    if not importlib.util.find_spec("pytest"):
        print("not run: pytest is not installed", flush=True)
        return {"outcome": "not run: pytest is not installed"}
    # Only files that hold such tests: the others' imports may be missing here.
    files = [
        str(path)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "@requires_gpu" in path.read_text()
    ]
    report: Report = {}
    for line in run_part([sys.executable, "-m", "pytest", "-m", "gpu", *files], TESTS_BUDGET_S, report):
        print(line, flush=True)
        if line.strip():
            report["summary"] = line.strip("= ")
    return report


def run_part(command: list[str], budget_s: float, report: Report) -> Iterator[str]:
    """Lines of the command's output; afterwards report["outcome"] is done, failed or stopped at the budget."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    started = time.monotonic()
    timer = threading.Timer(budget_s, _end_session, [process.pid])
    timer.start()
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            yield line.rstrip()
    code = process.wait()
    timer.cancel()
    report["seconds"] = round(time.monotonic() - started, 1)
    if code == -signal.SIGKILL and report["seconds"] >= budget_s:
        report["outcome"] = f"stopped after its {budget_s} s"
    else:
        report["outcome"] = "done" if code == 0 else f"failed with exit code {code}"


def _end_session(leader: int) -> None:
    """Ends a process and all that it started: a child left behind would keep the pipe open."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def write(report: Report) -> None:
    from git_scale.files import replaced_atomically

    with replaced_atomically(RESULTS) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
