"""The command line that every training tool shares: recipe, DeepSpeed JSON, overrides, --dry-run."""

from __future__ import annotations

import argparse
from typing import Any

from git_scale.console import path, whole
from git_scale.parallel.topology import is_first_rank


class FirstRankParser(argparse.ArgumentParser):
    """Prints help, usage and errors on the first rank alone; the exit code is that of all."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if is_first_rank():
            super()._print_message(message, file)


def parse_training_arguments(description: str, argv: list[str] | None) -> argparse.Namespace:
    parser = FirstRankParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="RECIPE", help="a recipe's name, or a YAML file")
    parser.add_argument(
        "--ds_config", type=path, metavar="JSON", help="DeepSpeed settings; none: ZeRO 0, in bf16 1"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved run and its plan, and exit: with code 2 where the run would be refused",
    )
    parser.add_argument(
        "--world-size",
        type=whole(1),
        metavar="N",
        help="of a dry run: plan for so many GPUs like those of this machine (H100s where there are none)",
    )
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser.parse_intermixed_args(argv)
