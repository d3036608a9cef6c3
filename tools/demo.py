"""From nothing to captions in minutes: builds handwriting scenes, pretrains a GIT on them, shows what it says.

    make demo

Every step is a command of its own, printed before it runs, so that a newcomer can take it from there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import git_scale
from git_scale.checkpoint.layout import find_checkpoint, read_progress
from git_scale.console import tool
from git_scale.data.images import decode
from git_scale.data.store import open_store
from git_scale.evaluation.sheet import SheetCell, draw_captions
from git_scale.files import replaced_atomically
from git_scale.formatting import format_table
from git_scale.metrics.exact_match import is_match
from git_scale.own_commands import DEMO_DATA, build_demo_data, call, call_on_all
from git_scale.recipes import load_run

RUN = Path("runs/demo")
VIT_RUN = Path("runs/demo_vit")
BATCH = 100  # images per forward pass of the evaluation
SHOWN = 24  # images in captions.png


@tool
def main(argv: list[str] | None = None) -> int:
    argparse.ArgumentParser(  # for --help, and against what it would pass over
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(argv)
    started = time.monotonic()
    build_demo_data(load_run("demo").model.vocab_size)
    train_seconds = call_on_all("tools/pretrain.py", "--config", "demo")
    captions = caption_heldout()
    summary = summarise(train_seconds, captions, export_to_huggingface())
    draw(captions)
    print()
    print(
        format_table(
            table_by_kind(captions), ("held-out scenes", "images", "distinct captions", "exact match")
        )
    )
    print()
    print(format_table([(key, str(value)) for key, value in summary.items()], ("measured in this run", "")))
    print(f"\nimages with their captions   {RUN / 'captions.png'}")
    print(f"the ViT for transformers       {VIT_RUN / 'hf'}")
    print(f"curves                         {sys.executable} -m tensorboard.main --logdir {RUN}/tensorboard")
    print(f"all of it took                 {(time.monotonic() - started) / 60:.1f} minutes")
    return 0


def export_to_huggingface() -> dict[str, Any]:
    """Trains the one demo that transformers has a class for, exports its checkpoint and compares the logits.

    transformers' GIT knows CLIP's ViT only, not the ResNet that learns these scenes in minutes.
    """
    call_on_all("tools/pretrain.py", "--config", "demo_vit")
    report = VIT_RUN / "export.json"
    target = str(VIT_RUN / "hf")
    convert = ("tools/convert_checkpoint.py", "export", str(VIT_RUN), target, "--format", "hf")
    call(*convert, "--force", "--json", str(report))
    exported = json.loads(report.read_text())
    return {
        "hf_logits_max_abs_diff": exported["max_abs_diff"],
        "hf_verified_with": exported["verified_with"],
    }


@dataclass(frozen=True)
class HeldoutCaption:
    """Holds a held-out scene and what the saved checkpoint says of it."""

    image: Image.Image
    kind: str
    reference: str
    generated: str

    @property
    def is_exact(self) -> bool:
        return is_match(self.generated, [self.reference])


def caption_heldout() -> list[HeldoutCaption]:
    """All held-out scenes through the run's newest checkpoint, on one process, as a user of it would."""
    model = git_scale.load(RUN, device="cpu")
    heldout = open_store(DEMO_DATA / "heldout")
    captions = []
    for first in range(0, len(heldout), BATCH):
        raws = [heldout.read(index) for index in range(first, min(first + BATCH, len(heldout)))]
        images = [decode(raw.image) for raw in raws if raw.image]
        for raw, image, text in zip(raws, images, model.caption(images, beams=1), strict=True):
            captions.append(HeldoutCaption(image, raw.text.meta["kind"], raw.text.captions[0], text))
    return captions


def table_by_kind(captions: list[HeldoutCaption]) -> list[tuple[str, ...]]:
    kinds = {kind: [item for item in captions if item.kind == kind] for kind in {c.kind: 0 for c in captions}}
    rows = [*kinds.items(), ("all", captions)]
    return [
        (kind, str(len(items)), str(len({item.reference for item in items})), f"{share_exact(items):.3f}")
        for kind, items in rows
    ]


def share_exact(captions: list[HeldoutCaption]) -> float:
    return sum(item.is_exact for item in captions) / len(captions)


def summarise(
    train_seconds: float, captions: list[HeldoutCaption], exported: dict[str, Any]
) -> dict[str, Any]:
    """What this run measured, printed and written to summary.json."""
    lines = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "train/loss" in line]
    progress = read_progress(find_checkpoint(RUN))
    summary = {
        "world_size": progress.world_size,
        "zero_stage": progress.zero_stage,
        "steps": progress.step,
        "train_seconds": round(train_seconds, 1),
        "images_per_second": round(statistics.median(line["speed/images_per_s"] for line in steps), 1),
        "first_loss": round(steps[0]["train/loss"], 4),
        "last_loss": round(steps[-1]["train/loss"], 4),
        "heldout_images": len(captions),
        "heldout_distinct_captions": len({item.reference for item in captions}),
        "heldout_exact_match": round(share_exact(captions), 4),
        **exported,
    }
    with replaced_atomically(RUN / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def draw(captions: list[HeldoutCaption]) -> None:
    rows = [SheetCell(np.asarray(item.image), item.reference, item.generated) for item in captions[:SHOWN]]
    with replaced_atomically(RUN / "captions.png") as temporary:
        draw_captions(rows).save(temporary, "PNG")


if __name__ == "__main__":
    sys.exit(main())
