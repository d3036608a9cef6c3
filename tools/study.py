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
from git_scale.errors import UserError
from git_scale.formatting import format_duration, format_table
from git_scale.own_commands import (
    DEMO,
    DEMO_DATA,
    PROCESSES,
    build_demo_data,
    call_on_all,
    refuse_without_demo,
)

if TYPE_CHECKING:
    from git_scale.studies.study_folder import StudyFolder

RUNS = Path("runs/studies")
TEXTS = DEMO_DATA / "texts"


@tool
def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    # What takes torch along is imported after the arguments: neither --help nor a wrong one waits for it.
    from git_scale.studies.plots import refuse_without_matplotlib
    from git_scale.studies.study_folder import StudyFolder

    here = StudyFolder(args.study, args.runs, args.overrides)
    if args.list:
        print_list(here, args)
    elif args.commands is not None:
        print_commands(here, args)
    elif args.data:
        build_data(here)
    else:
        refuse_without_matplotlib()
        if not args.report:
            build_data(here)
            run_what_is_left(here)
        report_on(here)
    return 0


def print_list(here: StudyFolder, args: argparse.Namespace) -> None:
    """All runs, and what is typed where the study runs on a cluster."""
    rows = [(run.name, f"{here.samples_of(run):,}", "ended" if here.has_ended(run) else "") for run in here]
    print(format_table(rows, ("run", "samples", "")))
    same = same_study(args)
    print(f"\non a cluster    python tools/study.py {same} --data")
    print(f"                sbatch --array=0-{len(here.chains) - 1} slurm/study.sh {same}")
    print(f"                python tools/study.py {same} --report")


def same_study(args: argparse.Namespace) -> str:
    folder = [] if args.runs == RUNS else ["--runs", str(args.runs)]
    return shlex.join([args.study, *folder, *args.overrides])


def print_commands(here: StudyFolder, args: argparse.Namespace) -> None:
    """Those of one job of an array that are left, a line each, quoted for the shell. Raises UserError."""
    if args.commands >= len(here.chains):
        raise UserError(f"--commands {args.commands}: the study has jobs 0 to {len(here.chains) - 1}")
    # jobs that made it together would be in each other's way
    if absent := [place for place in needed_data(here) if not place.exists()]:
        raise UserError(f"{absent[0]}: not there; `python tools/study.py {same_study(args)} --data` makes it")
    for run in here.chains[args.commands]:
        if not here.has_ended(run):
            print(shlex.join(here.command_of(run)))


def build_data(here: StudyFolder) -> None:
    """What the study reads of the demo's, unless it is there."""
    from git_scale.data.builders.digit_tasks import write_texts
    from git_scale.data.builders.new_folder import new_shard_folder
    from git_scale.recipes import load_run

    if any(Path(recipe.model.encoder.start) == DEMO for recipe in here.recipes.values()):
        refuse_without_demo()
    if needed_data(here):
        build_demo_data(load_run("demo").model.vocab_size)
    if TEXTS in needed_data(here) and not TEXTS.exists():
        with new_shard_folder(TEXTS) as new:
            write_texts(new, split="train", count=20_000, seed=1, workers=PROCESSES)


def needed_data(here: StudyFolder) -> list[Path]:
    """What the study reads of the demo's."""
    return sorted(place for place in here.paths if place.is_relative_to(DEMO_DATA))


def run_what_is_left(here: StudyFolder) -> None:
    """One after the other; ends this process with the code of a run that fails."""
    left = [run for run in here if not here.has_ended(run)]
    here.check(left, PROCESSES)
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


def report_on(here: StudyFolder) -> None:
    header, rows = here.table()
    if rows:
        print("\n" + format_table(rows, header))
    if missing := here.missing:
        print(f"\n{len(missing)} runs have not ended: {', '.join(missing)}")
    print(f"\ntable and pictures    {here.write_report()}")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", help="a study of git_scale/studies/ by its name, or the path of a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="for all runs")
    parser.add_argument("--runs", type=path, default=RUNS, help="the folder of studies' runs (%(default)s)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--list", action="store_true", help="show the runs and which have ended")
    mode.add_argument(
        "--report", action="store_true", help="report on the runs that have ended, and run none"
    )
    mode.add_argument(
        "--data", action="store_true", help="make the demo's data where the study reads it, and run none"
    )
    mode.add_argument(
        "--commands",
        type=whole(0),
        metavar="N",
        help="print those of job N of an array that are left, and run none",
    )
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    sys.exit(main())
