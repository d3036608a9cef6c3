"""The checks that need a CUDA GPU: the gpu-marked tests, then measurements, in stages of at most two minutes.

    make gpu-check PYTHON=python3                       all stages
    make gpu-check PYTHON=python3 STAGES=1              a set of at most four minutes: 1, 2 or 3, in this order
    make gpu-check PYTHON=python3 STAGES=tests,large    some by name
    python tools/gpu_check.py --tables                  no GPU: the tables of benchmarks/README.md from the results

Runs with the interpreter that it is given, sets nothing up and needs no network. Every result is written to
benchmarks/results/gpu.json as soon as it is there, with card, date, versions and commit, so that a run is useful
whenever it is cut. A stage that is done for the present code and card is not run again. Exit codes: 0 nothing
failed, 1 something failed or was cut, 2 no GPU. A stage that was not run is named so and is no success.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import importlib.metadata
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
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # nothing is installed there

from git_scale.console import output_file, tool  # noqa: E402

if TYPE_CHECKING:
    from benchmarks.gpu.stages import BenchmarkStage

RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
README = ROOT / "benchmarks" / "README.md"
NEEDED = (
    "torch",
    "deepspeed",
    "timm",
    "pydantic",
    "yaml",
    "numpy",
    "PIL",
    "xxhash",
    "safetensors",
    "pycocoevalcap",
)
VERSIONS = ("torch", "deepspeed", "timm", "transformers", "triton")
SOURCES = ("git_scale/**/*.py", "git_scale/**/*.yaml", "ds_configs/*.json", "benchmarks/**/*.py")

Report = dict[str, Any]


@tool
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.tables:
        return write_tables()
    if missing := [name for name in NEEDED if not importlib.util.find_spec(name)]:
        print(f"gpu-check: {sys.executable} lacks {', '.join(missing)}: nothing was run.", file=sys.stderr)
        return 2
    import torch  # after the arguments: neither --help nor a wrong one waits for it

    if not args.tiny and not torch.cuda.is_available():
        print("gpu-check needs a CUDA GPU, and torch finds none: nothing was run.", file=sys.stderr)
        return 2
    here = describe_machine()
    outcomes = {stage.name: run_stage(stage, here, args.results, args.tiny) for stage in chosen(args.stages)}
    print(f"== {outcomes}\n== {args.results}")
    return int(any(outcome.startswith(("failed", "stopped")) for outcome in outcomes.values()))


def chosen(names: str) -> list[BenchmarkStage]:
    """Stages by name or number of their set, in the order of the table. Raises ConfigError for others."""
    from benchmarks.gpu.stages import STAGES
    from git_scale.errors import ConfigError

    asked = set(filter(None, names.split(",")))
    known = {stage.name for stage in STAGES} | {str(stage.set) for stage in STAGES}
    if asked - known:
        unknown = ", ".join(sorted(asked - known))
        raise ConfigError([f"STAGES={names}: no stage {unknown}; there are {', '.join(sorted(known))}"])
    return [stage for stage in STAGES if not asked or {stage.name, str(stage.set)} & asked]


def run_stage(stage: BenchmarkStage, here: Report, results: Path, tiny: bool) -> str:
    """Runs a stage unless it is done; its results replace older ones as soon as the first is there."""
    report = read_results(results)
    before = report["stages"].get(stage.name, {})
    same = all(before.get(key) == here[key] for key in ("card", "code"))
    if same and before.get("outcome") == "done":
        print(f"== {stage.name}: done already for this code on this card", flush=True)
        return "done already"
    print(f"== {stage.name} ({stage.shows}), at most {stage.budget_s} s", flush=True)
    entry: Report = {**here, "outcome": "running", "results": []}
    for line in run_part(command_of(stage, tiny), stage.budget_s, entry):
        print(line, flush=True)
        if stage.measure is None:
            entry["summary"] = line.strip("= ") or entry.get("summary", "")
        elif line.startswith("{"):
            entry["results"].append(json.loads(line))
            report["stages"][stage.name] = entry
            write(results, report)
    if stage.measure is None and "passed" not in entry.get("summary", ""):
        entry["outcome"] = f"failed: no test passed ({entry.get('summary', '')})"
    elif stage.measure is not None and entry["outcome"] == "done":
        entry["outcome"] = outcome_of(entry["results"])
    if entry["results"] or stage.measure is None:
        report["stages"][stage.name] = entry
        write(results, report)
    return str(entry["outcome"])


def outcome_of(results: list[Report]) -> str:
    """A stage whose results all say why they are none was skipped."""
    if not results:
        return "failed: no result"
    return f"skipped: {results[0]['skipped']}" if all("skipped" in item for item in results) else "done"


def command_of(stage: BenchmarkStage, tiny: bool) -> list[str]:
    if stage.measure is not None:
        return [sys.executable, "-m", "benchmarks.gpu.stages", stage.name, *(["--tiny"] if tiny else [])]
    # Only files that hold such tests: the others' imports may be missing here.
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    return [
        *(sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider"),
        *(str(path) for path in tests if "@requires_gpu" in path.read_text(encoding="utf-8")),
    ]


def describe_machine() -> Report:
    """What every figure depends on."""
    import torch

    on_gpu = torch.cuda.is_available()
    return {
        "card": torch.cuda.get_device_name(0) if on_gpu else "none",
        "memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if on_gpu else 0.0,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        "python": sys.version.split()[0],
        "cuda": torch.version.cuda,
        "versions": {name: version_of(name) for name in VERSIONS},
        "commit": commit(),
        "code": code_digest(),
    }


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """None in a copy without its history."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    with contextlib.suppress(OSError):
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        return found.stdout.strip() or None
    return None


def code_digest() -> str:
    """Of all that a measurement runs: committing the results leaves it as it is, and a copy has it, too."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in SOURCES for path in ROOT.glob(pattern)):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


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


def read_results(path: Path) -> Report:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"stages": {}}


def write(path: Path, report: Report) -> None:
    from git_scale.files import write_text

    write_text(path, json.dumps(report, indent=1) + "\n")


def write_tables() -> int:
    from benchmarks.gpu.tables import with_tables
    from git_scale.files import replaced_atomically

    text = with_tables(README.read_text(encoding="utf-8"), read_results(RESULTS))
    with replaced_atomically(README) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", default="", metavar="NAME,...", help="default: all")
    parser.add_argument("--tables", action="store_true", help="write the tables of benchmarks/README.md")
    parser.add_argument(
        "--results", type=output_file, default=RESULTS, metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="rehearse with tiny shapes, also on a CPU: with --results"
    )
    args = parser.parse_args(argv)
    if args.tiny and args.results == RESULTS:
        parser.error("--tiny rehearses: give it a file of its own with --results FILE")
    return args


if __name__ == "__main__":
    sys.exit(main())
