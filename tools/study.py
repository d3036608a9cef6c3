"""Run a study: a grid of recipes that see the same number of samples each, then one table and its pictures.

    python tools/study.py ablations
    python tools/study.py ablations --list
    python tools/study.py my_study.yaml --runs runs/mine train.steps=400

Each run is a command of its own on two processes, printed before it runs; the same command goes on with the run that
was stopped. `ablations` asks the demo's handwriting, docs/studies.md says what a study's file holds, and
`sbatch slurm/study.sh` runs it on a cluster.

Exit codes: 0 done, 2 wrong usage or configuration, otherwise that of the run that failed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from git_scale.console import path, tool, whole
from git_scale.data.builders.digit_tasks import write_texts
from git_scale.data.builders.new_folder import new_shard_folder
from git_scale.errors import UserError
from git_scale.formatting import format_duration, format_table
from git_scale.own_commands import DEMO_DATA, PROCESSES, build_demo_data, call_on_all

if TYPE_CHECKING:
    from git_scale.studies.study_folder import StudyFolder

TEXTS = DEMO_DATA / "texts"


@tool
def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    # What takes torch along is imported after the arguments: neither --help nor a wrong one waits for it.
    from git_scale.studies.study_folder import StudyFolder

    here = StudyFolder(args.study, args.runs, args.overrides)
    if args.commands is not None:
        return print_commands(here, args.commands)
    if args.list:
        rows = [
            (run.name, f"{here.samples_of(run):,}", "ended" if here.has_ended(run) else "") for run in here
        ]
        print(format_table(rows, ("run", "samples", "")))
        same = shlex.join([args.study, *args.overrides])
        print(f"\non a cluster: sbatch --array=0-{len(here.chains) - 1} slurm/study.sh {same}")
        return 0
    if not args.report:
        run_what_is_left(here)
    report = here.write_report()
    header, rows_of_settings = here.table()
    print("\n" + format_table(rows_of_settings, header))
    print(f"\ntable and pictures    {report}")
    return 0


def print_commands(here: StudyFolder, number: int) -> int:
    """Of one job of an array, a line each, quoted for the shell. Raises UserError."""
    if number >= len(here.chains):
        raise UserError(f"--commands {number}: the study has jobs 0 to {len(here.chains) - 1}")
    for run in here.chains[number]:
        print(shlex.join(here.command_of(run)))
    return 0


def run_what_is_left(here: StudyFolder) -> None:
    """One after the other; ends this process with the code of a run that fails."""
    if here.study.recipe == "demo":
        build_demo_data(here.vocab_size)
        build_texts()
    left = [run for run in here if not here.has_ended(run)]
    started, seen = time.monotonic(), 0
    to_see = sum(map(here.samples_of, left))
    for number, run in enumerate(left, start=1):
        rest = ""
        if seen:
            per_sample = (time.monotonic() - started) / seen
            rest = f"; {format_duration(per_sample * (to_see - seen))} left"
        print(f"\n== {run.name}: run {number} of {len(left)}{rest}", flush=True)
        call_on_all(*here.command_of(run))
        seen += here.samples_of(run)


def build_texts() -> None:
    """Captions without images, for the share of text alone, unless an earlier study made them."""
    if not TEXTS.exists():
        with new_shard_folder(TEXTS) as new:
            write_texts(new, split="train", count=20_000, seed=1, workers=PROCESSES)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", help="a study of git_scale/studies/ by its name, or the path of a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="for all runs")
    parser.add_argument(
        "--runs", type=path, default=Path("runs/studies"), help="the folder of studies' runs (%(default)s)"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--list", action="store_true", help="show the runs and which have ended")
    mode.add_argument(
        "--report", action="store_true", help="report on the runs that have ended, and run none"
    )
    mode.add_argument(
        "--commands", type=whole(0), metavar="N", help="print those of job N of an array, and run none"
    )
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    sys.exit(main())
