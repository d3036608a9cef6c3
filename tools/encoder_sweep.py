"""Every family of timm as the encoder of a GIT: two steps, a checkpoint, exports and imports, the same features.

    python tools/encoder_sweep.py --markdown docs/encoders.md
    python tools/encoder_sweep.py swin_transformer eva

Takes about ten minutes on two cores; each family is a small model, trained in one process on coloured squares. Ends
with code 1 when a family gives other features at one of the stations, or fails in a way that is no refusal.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from git_scale.console import output_file, tool
from git_scale.files import write_text
from git_scale.formatting import format_table

if TYPE_CHECKING:
    from git_scale.testing.families import FamilyResult

COLUMNS = ["family", "model", "tokens x width", "computed", "hf", "result"]
HEADER = """# Image encoders

One small model of each family of timm {timm} as the encoder of a GIT, made by `make sweep`: trained for two steps,
saved, loaded, exported and read back, with the same features at every station. "computed" counts the buffers that no
checkpoint holds; "hf" says whether transformers has a class for it.

"""


@tool
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    # What takes torch along is imported after the arguments: neither --help nor a wrong one waits for it.
    from git_scale.testing.distributed import run_distributed
    from git_scale.testing.families import try_families
    from git_scale.testing.tiny import write_squares_data
    from git_scale.testing.tiny_encoders import families

    with tempfile.TemporaryDirectory() as scratch:
        squares = write_squares_data(Path(scratch) / "squares")
        chosen = args.families or families()
        (results,) = run_distributed(try_families, 1, squares, Path(scratch), chosen, timeout_s=3600)
    lines = [row(result) for result in results]
    print(format_table(lines, COLUMNS))
    if args.markdown is not None:
        write_text(args.markdown, HEADER.format(timm=version("timm")) + markdown(lines))
    wrong = [result.family for result in results if not result.is_right]
    print(
        f"{len(results) - len(wrong)} of {len(results)} right"
        + (f"; wrong: {', '.join(wrong)}" if wrong else "")
    )
    return 1 if wrong else 0


def row(result: FamilyResult) -> list[str]:
    """The cells of COLUMNS."""
    shape = f"{result.tokens} x {result.width}" if result.tokens else ""
    buffers, huggingface = str(result.computed_buffers or ""), "yes" if result.huggingface else ""
    return [result.family, result.model, shape, buffers, huggingface, result.outcome]


def markdown(lines: list[list[str]]) -> str:
    rows = [COLUMNS, ["---"] * len(COLUMNS), *lines]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("families", nargs="*", help="modules of timm.models; none: all of them")
    parser.add_argument("--markdown", type=output_file, help="write the table to this file as well")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
