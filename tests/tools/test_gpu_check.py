from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

TOOL = Path(__file__).parents[2] / "tools" / "gpu_check.py"
HERE = {"card": "none", "code": "c0de"}


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "describe_machine", lambda: HERE)
    monkeypatch.setattr(module, "NEEDED", ())
    return module


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "gpu.json"


def pretend_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def run(tool: ModuleType, results: Path, stages: str = "") -> int:
    return int(tool.main(["--results", str(results), "--stages", stages]))


def test_without_cuda_one_message_and_code_2(
    tool: ModuleType, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(tool, results) == 2
    assert "needs a CUDA GPU" in capsys.readouterr().err
    assert not results.exists()


def test_a_missing_package_is_named(
    tool: ModuleType, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_a_gpu(monkeypatch)
    monkeypatch.setattr(tool, "NEEDED", ("json", "no_such_package"))
    assert run(tool, results) == 2
    assert "lacks no_such_package:" in capsys.readouterr().err


def test_an_unknown_stage_is_named_beside_those_that_there_are(
    tool: ModuleType, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_a_gpu(monkeypatch)
    assert run(tool, results, "tests,larg") == 2
    assert "no stage larg; there are 1, 2, 3, attention" in capsys.readouterr().err
    assert [stage.name for stage in tool.chosen("git2,tests")] == ["tests", "git2"]
    assert {stage.set for stage in tool.chosen("2")} == {2}


@pytest.mark.parametrize(
    ("code", "budget_s", "outcome"),
    [
        ("print('{}')", 60, "done"),
        ("print('{}'); raise SystemExit(3)", 60, "failed with exit code 3"),
        # The grandchild inherits the pipe: only the end of the whole session ends the part.
        (
            "import subprocess, sys, threading; print('{}', flush=True);"
            "subprocess.run([sys.executable, '-c', 'import threading; threading.Event().wait()'])",
            2,
            "stopped after its 2 s",
        ),
    ],
    ids=["done", "failed", "stopped"],
)
def test_a_part_keeps_its_lines_and_tells_how_it_ended(
    tool: ModuleType, code: str, budget_s: float, outcome: str
) -> None:
    report: dict[str, object] = {}
    assert list(tool.run_part([sys.executable, "-c", code], budget_s, report)) == ["{}"]
    assert report["outcome"] == outcome


def printing(
    monkeypatch: pytest.MonkeyPatch, tool: ModuleType, lines: list[str], outcome: str = "done"
) -> list[Any]:
    """Stages that print these lines; returns the commands that were run."""
    commands: list[Any] = []

    def run_part(command: list[str], budget_s: float, report: dict[str, object]) -> Iterator[str]:
        commands.append(command)
        yield from lines
        report["outcome"] = outcome

    monkeypatch.setattr(tool, "run_part", run_part)
    return commands


def test_results_are_on_disk_after_every_line_and_a_failure_is_the_exit_code(
    tool: ModuleType, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_a_gpu(monkeypatch)
    on_disk: list[int] = []

    def cut(command: list[str], budget_s: float, report: dict[str, object]) -> Iterator[str]:
        for number in range(2):
            yield json.dumps({"ms": number})
            on_disk.append(len(json.loads(results.read_text())["stages"]["attention"]["results"]))
        yield "a word of a library"
        report["outcome"] = "stopped after its 40 s"

    monkeypatch.setattr(tool, "run_part", cut)
    assert run(tool, results, "attention") == 1
    assert on_disk == [1, 2]
    entry = json.loads(results.read_text())["stages"]["attention"]
    assert entry == {**HERE, "outcome": "stopped after its 40 s", "results": [{"ms": 0}, {"ms": 1}]}


def test_a_stage_that_is_done_for_this_code_is_not_run_again(
    tool: ModuleType, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_a_gpu(monkeypatch)
    commands = printing(monkeypatch, tool, ['{"ms": 1}'])
    assert [run(tool, results, "attention") for _ in range(2)] == [0, 0] and len(commands) == 1
    monkeypatch.setattr(tool, "describe_machine", lambda: {**HERE, "code": "other"})
    printing(monkeypatch, tool, [], "failed with exit code 1")
    assert run(tool, results, "attention") == 1
    kept = json.loads(results.read_text())["stages"]["attention"]
    assert kept["results"] == [{"ms": 1}] and kept["code"] == "c0de", "nothing measured is lost to a failure"


@pytest.mark.parametrize(
    ("stage", "lines", "outcome", "code"),
    [
        ("git2", ['{"skipped": "too small a GPU"}'], "skipped: too small a GPU", 0),
        ("git2", [], "failed: no result", 1),
        ("tests", ["== 10 passed in 3 s =="], "done", 0),
        ("tests", ["== 10 skipped in 3 s =="], "failed: no test passed (10 skipped in 3 s)", 1),
    ],
)
def test_what_was_not_measured_does_not_count_as_done(
    tool: ModuleType, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    stage: str, lines: list[str], outcome: str, code: int,
) -> None:  # fmt: skip
    pretend_a_gpu(monkeypatch)
    printing(monkeypatch, tool, lines)
    assert run(tool, results, stage) == code
    assert outcome in capsys.readouterr().out


def test_the_identity_of_the_code_survives_a_commit_of_the_results(tool: ModuleType) -> None:
    assert not any("results" in pattern for pattern in tool.SOURCES)
    before = tool.code_digest()
    assert before == tool.code_digest() and len(before) == 12


def test_a_rehearsal_does_not_write_into_the_published_results(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        tool.main(["--tiny"])
    assert "--results" in capsys.readouterr().err
    assert tool.main(["--tiny", "--stages", "attention", "--results", str(tmp_path / "tiny.json")]) == 0
    entry = json.loads((tmp_path / "tiny.json").read_text())["stages"]["attention"]
    assert entry["outcome"] == "done" and any("ms" in item for item in entry["results"])
