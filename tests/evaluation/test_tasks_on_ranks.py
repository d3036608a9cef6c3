"""Every task says the same of a checkpoint on one process, on two, under ZeRO-3, and on two copies that are split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import webdataset

from git_scale.evaluation import checkpoint_evaluation
from git_scale.parallel.topology import Topology
from git_scale.tasks import TASKS
from git_scale.testing.distributed import run_distributed
from git_scale.testing.taught import write_taught
from git_scale.testing.tiny import COLOURS, SIDES, describe, draw_square

FRAMES = 2
CLIPS, CROSS = "caption of clips", "caption by cross-attention"
FOLDERS = {CLIPS: "clips", CROSS: "cross"}
"""Of the models; of the tasks: one."""
BEAMS = {"caption": 3, CROSS: 3, "classification": 5}
"""Of the others: greedy."""


def rows_of_each(
    topology: Topology,
    device: torch.device,
    folder: Path,
    squares: Path,
    stage: int,
    tp: int,
) -> dict[str, list[dict[str, Any]]]:
    """The rows of results.json of each task, one evaluation behind the other in one process group."""
    ds_config = {"zero_optimization": {"stage": stage}}
    rows = {}
    asked = [task for task in TASKS if TASKS[task].has_images]  # of text alone nothing is generated
    for case in [*asked, *FOLDERS]:
        task = case if case in TASKS else "caption"
        model = folder / FOLDERS.get(case, "one")
        data = (folder if case == CLIPS else squares) / "heldout"
        overrides = [
            f"data.class_names={folder / 'names.txt'}",
            "eval.max_new_tokens=16",
            f"eval.beams={BEAMS.get(case, 1)}",
        ]
        overrides += ["train.micro_batch=2", f"parallel.tp={tp}"]
        with mock.patch.multiple(
            checkpoint_evaluation, start_processes=lambda topology: device, stop_processes=lambda: None
        ):
            found = checkpoint_evaluation.evaluate_checkpoint(
                model, data, task, None, overrides, ds_config, topology
            )
        rows[case] = [
            {**row, "text": item.generated}
            for row, item in zip(found.results, found.predictions, strict=True)
        ]
    return rows


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taught")
    write_taught(folder / "one")
    write_taught(folder / "clips", frames=FRAMES)
    write_taught(folder / "cross", attention="cross")
    (folder / "heldout").mkdir()
    with webdataset.TarWriter(str(folder / "heldout" / "clips-000000.tar"), encoder=False) as tar:
        for number in range(7):
            image = draw_square(list(COLOURS)[number % 4], list(SIDES)[number % 3])
            frames = {f"{frame}.png": image for frame in range(FRAMES)}
            caption = {
                "captions": [describe(list(COLOURS)[number % 4], list(SIDES)[number % 3])],
                "image_id": number,
            }
            tar.write({"__key__": f"{number}", "json": json.dumps(caption).encode(), **frames})
    (folder / "names.txt").write_text(
        "".join(f"{describe(colour, side)}\n" for colour in COLOURS for side in SIDES)
    )
    return folder


@pytest.mark.distributed
def test_predictions_are_those_of_one_process(squares: Path, taught: Path) -> None:
    def rows(ranks: int, stage: int, tp: int) -> list[Any]:
        return run_distributed(rows_of_each, ranks, taught, squares, stage, tp, tp=tp)

    (alone,) = rows(1, 0, 1)
    assert all(len(said) == (12 if case == "vqa" else 7) for case, said in alone.items()), "each query once"
    right = [describe(list(COLOURS)[number % 4], list(SIDES)[number % 3]) for number in range(7)]
    for case in ("caption", "classification", CLIPS, CROSS):
        assert [row["text"] for row in alone[case]] == right
    for ranks, stage, tp in ((2, 0, 1), (2, 3, 1), (4, 3, 2)):
        assert rows(ranks, stage, tp) == [alone] * ranks, f"{ranks} ranks, ZeRO {stage}, tp {tp}"
