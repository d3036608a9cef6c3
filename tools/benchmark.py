"""Run a benchmark program again: every published figure comes from one of these.

python tools/benchmark.py train_step --json benchmarks/results/train_step_cpu.json
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks/ is not part of the installed package

from git_scale.console import output_file, tool  # noqa: E402
from git_scale.files import write_text  # noqa: E402
from git_scale.formatting import format_table  # noqa: E402

HELPERS = {"products", "synthetic"}  # modules of benchmarks/ that are no programs


@tool
def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    result = importlib.import_module(f"benchmarks.{args.name}").run()
    print(format_table(list(_flat(result)), (args.name, "value")))
    if args.json:
        write_text(args.json, json.dumps(result, indent=2) + "\n")
    return 0


def _flat(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}: ")
        elif not isinstance(value, list):  # lists hold single measurements: they are for the file
            yield above + name, str(value)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    programs = sorted({file.stem for file in (ROOT / "benchmarks").glob("*.py")} - HELPERS)
    parser.add_argument("name", choices=programs)
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the figures here as well")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
