from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

TOOL = Path(__file__).parents[2] / "tools" / "gpu_check.py"


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "gpu.json")
    return module


def pretend_a_gpu(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tool, "describe_machine", lambda: {"gpu": "none"})
    monkeypatch.setattr(tool, "NEEDED", ())


def test_without_cuda_one_message_and_code_2(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tool.main() == 2
    assert "needs a CUDA GPU" in capsys.readouterr().err
    assert not tool.RESULTS.exists()


def test_a_missing_package_is_named(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_a_gpu(tool, monkeypatch)
    monkeypatch.setattr(tool, "NEEDED", ("json", "no_such_package"))
    assert tool.main() == 2
    assert "lacks no_such_package:" in capsys.readouterr().err


def test_without_pytest_the_tests_are_not_counted_as_passed(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool.importlib.util, "find_spec", lambda name: None)
    assert tool.run_tests() == {"outcome": "not run: pytest is not installed"}


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


def test_results_are_on_disk_after_every_case_and_a_failure_is_the_exit_code(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_a_gpu(tool, monkeypatch)
    monkeypatch.setattr(tool, "run_tests", lambda: {"outcome": "not run: pytest is not installed"})
    monkeypatch.setattr(tool, "BENCHMARK_BUDGETS_S", {"git_base": 1, "git2": 1})
    on_disk: list[int] = []

    def two_cases(command: list[str], budget_s: float, report: dict[str, object]):
        for number in range(2):
            yield json.dumps({"case": number})
            on_disk.append(len(json.loads(tool.RESULTS.read_text())[command[-1]]["cases"]))
        yield "a word of a library"
        report["outcome"] = "done" if command[-1] == "git_base" else "failed with exit code 1"

    monkeypatch.setattr(tool, "run_part", two_cases)
    assert tool.main() == 1
    assert on_disk == [1, 2, 1, 2]
    report = json.loads(tool.RESULTS.read_text())
    assert report["git_base"] == {"cases": [{"case": 0}, {"case": 1}], "outcome": "done"}
    assert report["tests"]["outcome"].startswith("not run")
