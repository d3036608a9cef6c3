"""Builds indexed tar shards to train on or to evaluate with.

    python tools/prepare_data.py digits data/digits --train 20000 --heldout 1000 --seed 0
    python tools/prepare_data.py images photos/ data/photos --captions captions.tsv
    python tools/prepare_data.py flickr flickr8k/images data/flickr --captions flickr8k/captions.token.txt
    python tools/prepare_data.py coco train2017/ data/coco --captions captions_train2017.json
    python tools/prepare_data.py vqa val2014/ data/vqav2/heldout \\
        --questions v2_OpenEnded_mscoco_val2014_questions.json --annotations v2_mscoco_val2014_annotations.json
    python tools/prepare_data.py vqa train_images/ data/textvqa/train --questions TextVQA_0.5.1_train.json
    python tools/prepare_data.py karpathy coco/ data/coco/train --captions dataset_coco.json --split train,restval
    python tools/prepare_data.py index shards_from_elsewhere/

docs/tasks.md has a command for each of the paper's benchmarks.

Images keep their bytes (JPEG, PNG, WebP); --shrink brings large ones to the pretraining size of the paper.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from git_scale.console import path, tool, whole
from git_scale.data.builders.digits import digit_scenes
from git_scale.data.builders.formats import ANNOTATION_FORMATS
from git_scale.data.builders.new_folder import new_shard_folder
from git_scale.data.builders.source_images import samples_of
from git_scale.data.builders.writer import BuildReport, describe_skipped, write_shards
from git_scale.data.index_folder import describe_folder, fill_folder
from git_scale.errors import ConfigError, DataError
from git_scale.registry import import_plugins
from git_scale.stop import StopRequest


@tool
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with StopRequest():
        if args.format == "index":
            print(*describe_folder(fill_folder(args.folder, args.workers)), sep="\n")
            return 0
        reports = build_digits(args) if args.format == "digits" else build_images(args)
    print_summary(reports)
    return 0


def build_digits(args: argparse.Namespace) -> dict[str, BuildReport]:
    reports = {}
    with new_shard_folder(args.destination) as folder:  # both splits appear together
        for split in ("train", "heldout"):
            count = getattr(args, split)
            scenes = digit_scenes(split, count, args.seed, args.workers)
            reports[split] = write_shards(scenes, folder / split, args.samples_per_shard, total=count)
    return reports


def build_images(args: argparse.Namespace) -> dict[str, BuildReport]:
    if args.source.resolve() in args.destination.resolve().parents:
        raise DataError(f"{args.destination}: lies in the folder of the images; choose another folder")
    form, given = ANNOTATION_FORMATS[args.format], vars(args)
    rows = form.read(given)
    if not rows:
        raise DataError(
            f"{form.texts_file(given)}: no image and no text in it, so nothing to build; is it the right file?"
        )
    samples = samples_of(rows, args.source, args.shrink, args.workers)
    beside = form.text_files(given)
    report = write_shards(samples, args.destination, args.samples_per_shard, len(rows), beside)
    return {args.destination.name: report}


def print_summary(reports: dict[str, BuildReport]) -> None:
    columns = f"{'samples':>10}{'captions':>10}{'distinct':>10}{'questions':>10}"
    print(f"{'':16}{columns}{'shards':>8}{'MiB':>10}{'skipped':>9}")
    for name, report in reports.items():
        counts = f"{report.samples:10}{report.captions:10}{report.distinct_captions:10}{report.questions:10}"
        print(f"{name:16}{counts}{report.shards:8}{report.bytes / 2**20:10.1f}{report.skipped.total():9}")
        for line in describe_skipped(report):
            print(f"  {line}")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    plugins = argparse.ArgumentParser(add_help=False)
    plugins.add_argument("--plugins", default="", metavar="MODULE,...", help="your own that add formats")
    given, rest = plugins.parse_known_args(argv)
    if problems := list(import_plugins(filter(None, given.plugins.split(",")))):
        raise ConfigError(problems)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[plugins]
    )
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    digits = formats.add_parser(
        "digits", help="the demo's scenes of handwritten digits: DST/train, DST/heldout"
    )
    digits.add_argument("--train", type=whole(1), default=20_000, help="scenes to train on (%(default)s)")
    digits.add_argument(
        "--heldout", type=whole(1), default=1000, help="scenes with unseen handwriting (%(default)s)"
    )
    digits.add_argument("--seed", type=whole(0), default=0)
    pictures = [add_format(formats, name) for name in ANNOTATION_FORMATS]
    index = formats.add_parser("index", help="adds digests to shards from elsewhere, and says what they hold")
    index.add_argument("folder", type=path, metavar="FOLDER", help="of the shards, or one of them")
    for command in (digits, *pictures):
        command.add_argument("destination", type=path, metavar="DST", help="new folder of the shards")
        command.add_argument("--samples-per-shard", type=whole(1), default=1000, help="(%(default)s)")
    for command in (digits, *pictures, index):
        command.add_argument(
            "--workers", type=whole(1), default=len(os.sched_getaffinity(0)), help="processes"
        )
    return parser.parse_args(rest)


def add_format(formats: Any, name: str) -> argparse.ArgumentParser:
    """The command of a format whose images lie in a folder."""
    form = ANNOTATION_FORMATS[name]
    command: argparse.ArgumentParser = formats.add_parser(name, help=form.help)
    for option in form.options:
        command.add_argument(
            f"--{option.name.replace('_', '-')}",
            type=path if option.is_file else str if option.least is None else whole(option.least),
            required=option.required,
            help=option.help,
            metavar="FILE" if option.is_file else None,
        )
    command.add_argument("source", type=path, metavar="SOURCE", help="folder of the images")
    command.add_argument(
        "--shrink", action="store_true", help="to at most 384 (shorter) x 640 (longer) pixels"
    )
    return command


if __name__ == "__main__":
    sys.exit(main())
