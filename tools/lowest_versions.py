"""Prints the lowest version of each requirement in setup.py, as a file of constraints for pip.

    python tools/lowest_versions.py > constraints.txt
    pip install -c constraints.txt -e ".[demo,test,hf,video,study]"

`make test-lowest` runs the tests on what that installs: docs/versions.md. A requirement without a lower bound is left
to pip.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from git_scale.console import tool

SETUP = Path(__file__).parents[1] / "setup.py"
EXTRAS = ("demo", "hf", "video", "study")


def requirements(setup: str) -> list[str]:
    """Of the package and of the extras that are more than tools, as the source of setup.py has them."""
    values = {
        target.id: ast.literal_eval(node.value)
        for node in ast.parse(setup).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return [*values["REQUIREMENTS"], *(item for extra in EXTRAS for item in values["EXTRAS"][extra])]


def lowest(wanted: list[str]) -> Iterator[str]:
    """`name==version` for each `name>=version`, once."""
    for requirement in dict.fromkeys(wanted):
        if found := re.fullmatch(r"([\w.-]+)>=([\w.]+)(,.*)?", requirement):
            yield f"{found[1]}=={found[2]}"


@tool
def main(argv: list[str] | None = None) -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(argv)
    print("\n".join(lowest(requirements(SETUP.read_text(encoding="utf-8")))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
