"""The constraints of `make test-lowest` are the lower bounds of setup.py, which stand there alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tools.lowest_versions import SETUP, lowest, requirements

ROOT = Path(__file__).parents[2]


def test_each_lower_bound_becomes_a_version() -> None:
    setup = """
REQUIREMENTS = ["one>=1.2,<2", "two>=3", "three", "four<5"]  # without a bound: pip's choice
EXTRAS = {"demo": ["five-a>=0.1"], "hf": ["two>=3"], "video": ["six==7"], "study": ["seven>=8"],
          "lint": ["ruff>=0.1"], "test": ["x>=1"]}
"""
    assert list(lowest(requirements(setup))) == ["one==1.2", "two==3", "five-a==0.1", "seven==8"]


def test_the_tool_prints_those_of_this_package() -> None:
    printed = subprocess.check_output([sys.executable, ROOT / "tools" / "lowest_versions.py"], text=True)
    setup = SETUP.read_text(encoding="utf-8")
    bounds = dict(line.split("==") for line in printed.splitlines())
    for name in ("torch", "deepspeed", "megatron-core", "timm", "transformers", "tokenizers"):
        assert f'"{name}>={bounds[name]},<' in setup
    assert "torchvision" not in bounds and "pytest" not in bounds


def test_the_range_of_torch_is_the_same_wherever_it_is_written() -> None:
    places = [ROOT / name for name in ("setup.py", "Makefile", "README.md")]
    ranges = [
        set(re.findall(r"torch(>=[\d.]+,<[\d.]+)", path.read_text(encoding="utf-8"))) for path in places
    ]
    assert ranges == [ranges[0]] * 3 and len(ranges[0]) == 1
