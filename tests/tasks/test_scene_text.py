"""Words of images: an LMDB is trained on and evaluated as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lmdb
import pytest
import torch

from git_scale.parallel.topology import Topology
from git_scale.stop import StopRequest
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import COLOURS, SIDES, draw_square, tiny_run


def write_words(folder: Path, count: int) -> Path:
    """Squares labelled by their colour; number 2 has no image."""
    folder.mkdir(parents=True)
    database = lmdb.open(str(folder), map_size=1 << 24)
    with database.begin(write=True) as transaction:
        transaction.put(b"num-samples", str(count).encode())
        for number in range(1, count + 1):
            colour, side = list(COLOURS)[number % 4], list(SIDES)[number % 3]
            if number != 2:
                transaction.put(f"image-{number:09d}".encode(), draw_square(colour, side))
            transaction.put(f"label-{number:09d}".encode(), colour.encode())
    database.close()
    return folder


def learn(topology: Topology, device: torch.device, run: Any) -> tuple[dict[str, float], int]:
    from git_scale.training.build import build_trainer

    trainer = build_trainer(run, {"zero_optimization": {"stage": 3}}, topology, device)
    trainer.fit(StopRequest())
    trainer.writer.close()
    return trainer.evaluations.past[-1], trainer.bad_samples


@pytest.mark.distributed
def test_words_are_learned_from_a_database(squares: Path, tmp_path: Path) -> None:
    write_words(tmp_path / "train" / "MJ", 24)
    write_words(tmp_path / "train" / "ST", 16)
    write_words(tmp_path / "heldout", 13)
    run = tiny_run(
        squares,
        tmp_path / "run",
        data={
            "train": str(tmp_path / "train"),
            "heldout": str(tmp_path / "heldout"),
            "task": "scene_text",
            "resize": "pad",
            "workers": 2,
            "max_bad_share": 1.0,
        },
        train={"steps": 120, "global_batch": 8, "micro_batch": 4, "label_smoothing": 0.0},
        optimizer={"encoder_lr": 3e-3, "decoder_lr": 3e-3, "warmup_steps": 5},
        eval={"images": 13},
        checkpoint={"best": "word_accuracy"},
    )
    (metrics, bad), again = run_distributed(learn, 2, run)
    assert (metrics, bad) == again
    assert (
        metrics["eval/word_accuracy"] > 0.9
        and metrics["eval/edit_similarity"] >= metrics["eval/word_accuracy"]
    )
    assert metrics["eval/texts"] == 12, "the hole is left out"
    assert bad == 48, "24 epochs of 40 samples, two of which are holes"
    best = json.loads((tmp_path / "run" / "checkpoints" / "best.json").read_text())
    assert best["metric"] == "word_accuracy" and best["value"] == metrics["eval/word_accuracy"]
