"""docs/logging.md against what runs write: every name has its sentence, and every sentence its name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from git_scale.parallel.topology import Topology
from git_scale.stop import StopRequest
from git_scale.tasks import TASKS
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import COLOURS, SIDES, describe, tiny_run

PAGE = Path(__file__).parents[2] / "docs" / "logging.md"
# of unhealthy runs, of scripts without blanks, of several objectives (masked words: test_readings_parity.py), of more
# sources, of nocaps, and of what sources hold out (test_heldout_sources.py)
RARE = {"eval/finding", "eval/segmented_by_character", "train/loss_NAME", "data/samples/NAME"}
RARE |= {"eval/accuracy_masked_lm"}
RARE |= {f"eval/NAME_{domain}_domain" for domain in ("in", "near", "out")} | {
    "eval/NAME/METRIC",
    "heldout/NAME",
}


def names_on(page: str) -> set[str]:
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def logged(
    topology: Topology, device: torch.device, squares: Path, folder: Path
) -> tuple[set[str], set[str]]:
    """Names in TensorBoard and in metrics.jsonl, of a run of each task."""
    from git_scale.training.build import build_trainer

    board, lines = set(), set()
    names = folder / "class_names.txt"
    names.write_text("".join(f"{describe(colour, side)}\n" for colour in COLOURS for side in SIDES))
    held = folder / "held.txt"
    held.write_text(f"a {describe(*next(zip(COLOURS, SIDES, strict=False)))}\n")
    for task, kind in ((task, TASKS[task]) for task in TASKS):
        alone = {} if kind.has_images else {"train": str(names), "heldout": str(held)}
        run = tiny_run(
            squares,
            folder / task,
            data={"task": task, "class_names": str(names), **alone},
            train={"steps": 5},
            eval={"every": 5, "max_new_tokens": 12 if task == "classification" else 2, "beams": 5},
        )
        trainer = build_trainer(run, {}, topology, device)
        trainer.fit(StopRequest())
        trainer.writer.close()
        events = EventAccumulator(str(folder / task / "tensorboard")).Reload()
        board |= {*events.Tags()["scalars"], *events.Tags()["images"]}
        text = (folder / task / "metrics.jsonl").read_text()
        lines |= {name for line in text.splitlines() for name in json.loads(line)}
    return board, lines


@pytest.mark.distributed
def test_the_page_has_every_name_that_is_logged_and_no_other(squares: Path, tmp_path: Path) -> None:
    ((board, lines),) = run_distributed(logged, 1, squares, tmp_path)
    named = names_on(PAGE.read_text(encoding="utf-8"))
    assert named - RARE == board
    assert lines - {"step", "time"} == board - {"heldout"}
    assert named > RARE


def test_a_name_without_a_row_would_be_missed() -> None:
    page = PAGE.read_text(encoding="utf-8")
    without = "\n".join(line for line in page.splitlines() if not line.startswith("| `speed/mfu`"))
    assert names_on(page) - names_on(without) == {"speed/mfu"}
