"""From captions to the other tasks, in minutes each: the demo's model learns to answer questions, to read numbers, to
tell classes and to say what moves.

    make demo
    make demo-tasks

Each task begins with the checkpoint of the demo, on two processes under ZeRO stage 3. Every step is a command of its
own, printed before it runs. Exit codes: 0 done, 1 when a figure is below what it has to be.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from git_scale.console import tool
from git_scale.data.builders.digit_tasks import FRAME_ORDERS, write_class_folders, write_videos, write_words
from git_scale.data.builders.new_folder import new_shard_folder
from git_scale.files import write_text
from git_scale.formatting import format_table
from git_scale.own_commands import call, call_on_all, refuse_without_demo

DATA = Path("runs/demo-tasks")
COUNTS = {"train": 6000, "heldout": 1000}  # images
CLIPS = {"train": 2500, "heldout": 250}
SHOTS = (1, 5)
SEED = 0
WORKERS = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Figure:
    """Holds what one task came to."""

    task: str
    what: str
    value: float
    at_least: float | None = None
    minutes: float | None = None
    """Of the whole task, at its first figure."""


@tool
def main(argv: list[str] | None = None) -> int:
    argparse.ArgumentParser(  # for --help, and against what it would pass over
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(argv)
    refuse_without_demo()
    figures: list[Figure] = []
    for task in (answer_questions, read_numbers, tell_classes, say_what_moves):
        started = time.monotonic()
        first, *others = task()
        figures += [replace(first, minutes=(time.monotonic() - started) / 60), *others]
    curves = learn_from_few()
    write_summary(figures, curves)
    print()
    print(
        format_table(
            rows_of_curves(curves), ("images per class", "held-out classes told right after so many steps")
        )
    )
    print()
    print(
        format_table(
            [row_of(figure) for figure in figures], ("task", "figure", "value", "at least", "minutes")
        )
    )
    print(f"\ncurves and held-out images    {sys.executable} -m tensorboard.main --logdir runs")
    return say_what_is_missed(figures)


def answer_questions() -> Iterator[Figure]:
    finetune("demo_vqa")
    yield Figure("questions", "exact_match", last_of("demo_vqa", "exact_match"), 0.95)


def read_numbers() -> Iterator[Figure]:
    for split, count in COUNTS.items():
        build(
            DATA / split / "words", partial(write_words, split=split, count=count, seed=SEED, workers=WORKERS)
        )
    finetune("demo_words")
    yield Figure("scene text", "word_accuracy", last_of("demo_words", "word_accuracy"), 0.90)


def tell_classes() -> Iterator[Figure]:
    for split, count in COUNTS.items():
        raw = DATA / "raw" / split / "classes"
        build(raw, partial(write_class_folders, split=split, count=count, seed=SEED, workers=WORKERS))
        prepare("classes", raw, DATA / split / "classes")
    finetune("demo_classes")
    yield Figure("classes, among the names", "top_1", last_of("demo_classes", "top_1"), 0.97)
    yield Figure("classes, any text", "exact_match", last_of("demo_classes", "exact_match"), 0.90)
    yield Figure("classes, any text", "unknown_names", last_of("demo_classes", "unknown_names"))


def say_what_moves() -> Iterator[Figure]:
    """With two controls: held-out clips whose frames are shuffled, and those whose first frame alone is shown."""
    for split, count in CLIPS.items():
        for order in FRAME_ORDERS if split == "heldout" else ("clips",):
            raw = DATA / "raw" / split / order
            build(
                raw, partial(write_videos, split=split, count=count, seed=SEED, workers=WORKERS, order=order)
            )
            prepare("images", raw, DATA / split / order, "--captions", f"{raw}/captions.tsv")
    finetune("demo_clips")
    whole = last_of("demo_clips", "exact_match")
    yield Figure("clips", "exact_match", whole, 0.85)
    for order in list(FRAME_ORDERS)[1:]:
        out = DATA / "results" / order
        data = ("--data", f"{DATA}/heldout/{order}", "--out", str(out), "--force")
        call_on_all("tools/evaluate.py", "--checkpoint", "runs/demo_clips", *data)
        lost = whole - json.loads((out / "metrics.json").read_text())["eval/exact_match"]
        yield Figure(order.replace("_", ", "), "exact_match lost", lost, 0.10)


def learn_from_few() -> dict[str, list[tuple[int, float]]]:
    """Images per class -> the share of held-out images told right among the names, after steps."""
    curves = {}
    for shots in SHOTS:
        folder, recipe = DATA / "train" / f"classes_{shots}", f"demo_classes_{shots}"
        prepare("classes", DATA / "raw/train/classes", folder, "--shots", str(shots), "--seed", str(SEED))
        few = (
            f"run_dir=runs/{recipe}",
            f"data.train={folder}",
            "train.global_batch=100",
            "train.micro_batch=50",
        )
        finetune("demo_classes", *few, "train.steps=20", "eval.every=5")
        curves[str(shots)] = curve_of(recipe, "top_1")
    return {**curves, "all": curve_of("demo_classes", "top_1")}


def build(folder: Path, write: Callable[[Path], None]) -> None:
    """What a benchmark publishes, unless an earlier run of this has built it."""
    if not folder.exists():
        with new_shard_folder(folder) as new:
            write(new)


def prepare(form: str, raw: Path, shards: Path, *options: str) -> None:
    if not shards.exists():
        call("tools/prepare_data.py", form, str(raw), str(shards), *options)


def finetune(recipe: str, *overrides: str) -> None:
    call_on_all("tools/finetune.py", "--config", recipe, *overrides)


def curve_of(run: str, metric: str) -> list[tuple[int, float]]:
    """(step, value) of each evaluation of a run."""
    lines = map(json.loads, Path("runs", run, "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line[f"eval/{metric}"]) for line in lines if f"eval/{metric}" in line]


def last_of(run: str, metric: str) -> float:
    return curve_of(run, metric)[-1][1]


def write_summary(figures: list[Figure], curves: dict[str, list[tuple[int, float]]]) -> None:
    tree = {"figures": [asdict(figure) for figure in figures], "top_1_after_steps": curves}
    write_text(DATA / "summary.json", json.dumps(tree, indent=1) + "\n")


def rows_of_curves(curves: dict[str, list[tuple[int, float]]]) -> list[tuple[str, ...]]:
    return [
        (shots, "  ".join(f"{step}: {value:.3f}" for step, value in curve)) for shots, curve in curves.items()
    ]


def row_of(figure: Figure) -> tuple[str, ...]:
    bound = "" if figure.at_least is None else f"{figure.at_least:.2f}"
    minutes = "" if figure.minutes is None else f"{figure.minutes:.1f}"
    return figure.task, figure.what, f"{figure.value:.3f}", bound, minutes


def say_what_is_missed(figures: list[Figure]) -> int:
    """The exit code."""
    missed = [figure for figure in figures if figure.at_least is not None and figure.value < figure.at_least]
    for figure in missed:
        print(f"{figure.task}: {figure.what} is {figure.value:.3f}, below {figure.at_least}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
