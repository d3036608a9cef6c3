"""Checkpoints in and out: import from elsewhere, export to elsewhere, look into one.

    python tools/convert_checkpoint.py import hub/git-base-coco models/git-base-coco
    python tools/convert_checkpoint.py import GIT_BASE_VQAv2/model.pt models/vqa --tokenizer vocab.txt
    python tools/convert_checkpoint.py import open_clip_model.safetensors models/clip-b16
    python tools/convert_checkpoint.py import vit.safetensors models/vit --encoder vit_small_patch16_224
    python tools/convert_checkpoint.py export runs/git_base exported/git-base --format hf
    python tools/convert_checkpoint.py reshape runs/git2 runs/git2_tp4 --tp 4
    python tools/convert_checkpoint.py inspect runs/git_base

Import reads Hugging Face's GIT, the paper's model.pt, and image encoders alone: those of CLIP, open_clip and timm.
Export reads anything; --format hf is for transformers, native is git_scale's own model folder.
Reshape rewrites a run's newest checkpoint, optimizer state included, for another tensor-parallel degree.
"""

# Each command imports what takes torch along for itself: neither --help nor a wrong argument waits for it.

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from git_scale.console import add_weights, output_file, path, tool, whole
from git_scale.errors import CheckpointError
from git_scale.files import write_text

if TYPE_CHECKING:
    from git_scale.checkpoint.opened_checkpoint import OpenedCheckpoint
    from git_scale.checkpoint.probe import ExportReport


@tool
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    args.command(args)
    return 0


def run_import(args: argparse.Namespace) -> None:
    from git_scale.checkpoint.image_size import with_image_size
    from git_scale.checkpoint.native import export_native

    opened = open_source(args.source, args.encoder)
    if args.image_size is not None:
        opened = with_image_size(opened, args.image_size)
    report(export_native(opened, args.destination, args.force, args.tokenizer), args.json)


def run_export(args: argparse.Namespace) -> None:
    from git_scale.checkpoint.detect import open_checkpoint
    from git_scale.checkpoint.huggingface_export import export_huggingface
    from git_scale.checkpoint.native import export_native
    from git_scale.recipes import adjusted

    opened = open_checkpoint(args.source, args.weights)
    if args.crop:
        opened = replace(opened, run=adjusted(opened.run, ["data.resize=crop"]))
    export = export_huggingface if args.format == "hf" else export_native
    report(export(opened, args.destination, args.force), args.json)


def run_reshape(args: argparse.Namespace) -> None:
    from git_scale.parallel.reshape import reshape

    checkpoint = reshape(args.source, args.destination, args.tp)
    print(f"{checkpoint}: goes on with run_dir={args.destination} parallel.tp={args.tp}")


def run_inspect(args: argparse.Namespace) -> None:
    from git_scale.checkpoint.weights import TIED_NAME
    from git_scale.training.lease import LEASE, describe_lease

    if (args.source / LEASE).exists():
        print(f"held by    {describe_lease(args.source)}")
    opened = open_source(args.source, args.encoder)
    print(f"kind       {opened.kind}")
    print(f"path       {opened.path}")
    print(f"step       {'-' if opened.step is None else opened.step}")
    print(f"tokenizer  {opened.tokenizer or '-'}")
    print(f"average    {'-' if opened.average is None else f'optimizer.ema={opened.run.optimizer.ema}'}")
    is_tied = opened.run.model.decoder.tied
    shapes = {n: shape for n, shape in opened.weights.shapes.items() if not (is_tied and n == TIED_NAME)}
    parts: Counter[str] = Counter()
    for name, shape in shapes.items():
        parts[name.partition(".")[0]] += shape.numel()
    for part, numbers in parts.items():
        print(f"{part:10} {numbers:>15,} numbers")
    print(f"{'total':10} {parts.total():>15,}")
    for name, shape in shapes.items():
        print(f"{name}  {list(shape)}")


def open_source(path: Path, encoder: str | None) -> OpenedCheckpoint:
    """A GIT, or an image encoder alone."""
    from git_scale.checkpoint.clip import open_encoder
    from git_scale.checkpoint.detect import open_checkpoint
    from git_scale.checkpoint.sources import TORCH_SUFFIXES

    if path.exists() and (opened := open_encoder(path, encoder)) is not None:
        return opened
    if path.is_file() and path.suffix not in TORCH_SUFFIXES:
        raise CheckpointError(f"{path}: no image encoder of CLIP; one of timm needs --encoder NAME")
    return open_checkpoint(path)


def report(done: ExportReport, json_file: Path | None) -> None:
    print(f"{done.destination}: {done.tensors} tensors, {done.parameters:,} parameters")
    for reason, count in Counter(done.dropped.values()).items():
        print(f"  not taken: {count} ({reason})")
    print(f"  read back with {done.verified_with}: largest difference {done.max_abs_diff:.2g}")
    if json_file is not None:
        write_text(json_file, json.dumps(asdict(done), default=str, indent=1))


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    into = commands.add_parser("import", help="from elsewhere to a model folder of git_scale")
    into.set_defaults(command=run_import)
    into.add_argument(
        "--tokenizer", type=path, help="vocab.txt, tokenizer.json or tokenizer.model of the model"
    )
    into.add_argument(
        "--image-size", type=whole(1), help="interpolate the table of positions for images of this side"
    )
    out = commands.add_parser("export", help="from a run, a checkpoint or a model folder")
    out.set_defaults(command=run_export)
    out.add_argument("--format", choices=("hf", "native"), required=True)
    add_weights(out)
    out.add_argument(
        "--crop",
        action="store_true",
        help="of a model that was trained on padded or uncropped images: let it see the middle of them",
    )
    again = commands.add_parser("reshape", help="a run's checkpoint for another tensor-parallel degree")
    again.set_defaults(command=run_reshape)
    again.add_argument("source", type=path)
    again.add_argument("destination", type=path, help="the folder of a new run")
    again.add_argument("--tp", type=whole(1), required=True, help="the new degree")
    look = commands.add_parser("inspect", help="kind, step, parameters and shapes")
    look.set_defaults(command=run_inspect)
    for command in (into, out, look):
        command.add_argument("source", type=path)
    for command in (into, look):
        command.add_argument("--encoder", help="timm's name of an image encoder that comes alone")
    for command in (into, out):
        command.add_argument("destination", type=path)
        command.add_argument("--force", action="store_true", help="replace a model's folder that exists")
        command.add_argument("--json", type=output_file, help="write the report to this file as well")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
