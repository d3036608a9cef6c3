"""What evaluations say about a run: in words when something is wrong twice in a row, nothing when all is well."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import webdataset

from git_scale.evaluation.health import findings, loss_rise
from git_scale.parallel.topology import Topology
from git_scale.stop import StopRequest
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import COLOURS, SIDES, describe, draw_square, tiny_run

HEALTHY = {"eval/image_gain": 0.4, "eval/distinct": 0.5, "eval/distinct_references": 0.8, "eval/loss": 1.0}


def test_a_healthy_run_says_nothing() -> None:
    assert findings([]) == findings([HEALTHY]) == findings([HEALTHY] * 5) == []
    assert findings([{"eval/images": 7.0}] * 2) == [], "nothing was measured"


@pytest.mark.parametrize(
    ("wrong", "edge", "sentence"),
    [
        (
            {"eval/image_gain": 0.049},
            {"eval/image_gain": 0.05},
            "the images are not used: .* saves 0.049 nats",
        ),
        ({"eval/image_gain": -0.0001}, {"eval/image_gain": 0.051}, "saves 0.000 nats"),
        ({"eval/distinct": 0.079}, {"eval/distinct": 0.081}, "7.9% .* distinct, 80.0% of the references"),
        ({"eval/loss_rise": 0.06}, {"eval/loss_rise": 0.05}, "over-fitting: .* risen to 1.000, 0.060 above"),
    ],
)
def test_what_is_wrong_is_said_at_the_second_evaluation(
    wrong: dict[str, float], edge: dict[str, float], sentence: str
) -> None:
    bad, good = HEALTHY | wrong, HEALTHY | edge
    (said,) = findings([HEALTHY, bad, bad])
    assert re.search(sentence, said)
    assert findings([bad]) == findings([bad, good]) == findings([good, bad]) == findings([good, good]) == []
    assert findings([bad], in_a_row=1) == [said]


def test_the_rise_is_counted_from_the_lowest_loss_so_far() -> None:
    past = [{"eval/loss": 2.0}, {"eval/loss": 1.5}, {"eval/loss": None}, {"eval/images": 3.0}]
    assert loss_rise(past, {"eval/loss": 1.75}) == 0.25
    assert loss_rise(past, {"eval/loss": 1.25}) == 0.0
    assert loss_rise(past, {"eval/images": 3.0}) is None


def write_scenes(folder: Path, count: int, shift: int) -> None:
    """Squares with one caption each; with a `shift` not their own, but that of a later image."""
    kinds = [(colour, side) for colour in COLOURS for side in SIDES]
    folder.mkdir(parents=True)
    with webdataset.TarWriter(str(folder / "s-000000.tar"), encoder=False) as tar:
        for number in range(count):
            # 5 does not divide the 12 kinds, so that a shift moves captions differently in each round
            said = describe(*kinds[(number + shift * (1 + number // 12) * 5) % 12])
            text = json.dumps({"captions": [said]}).encode()
            tar.write({"__key__": f"{number:04d}", "png": draw_square(*kinds[number % 12]), "json": text})


def fit(
    topology: Topology, device: torch.device, squares: Path, run_dir: Path, rate: float, constant: bool
) -> str:
    """What the run says of itself at its end, in metrics.jsonl."""
    from git_scale.training.build import build_trainer

    run = tiny_run(
        squares,
        run_dir,
        data={"train": str(run_dir.parent / "train"), "heldout": str(run_dir.parent / "heldout")},
        optimizer={"encoder_lr": rate, "decoder_lr": rate},
        train={"steps": 60, "micro_batch": 12, "global_batch": 12, "label_smoothing": 0.0},
        eval={"every": 30, "images": 12},
    )
    trainer = build_trainer(run, {}, topology, device)
    if constant:
        trainer.engine.model.module.encoder.register_forward_hook(lambda module, given, out: out * 0 + 1)
    trainer.fit(StopRequest())
    trainer.writer.close()
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    measured = {"eval/loss", "eval/image_gain", "eval/distinct", "eval/loss_rise"}
    assert all(measured <= line.keys() for line in lines if "eval/images" in line)
    return " ".join(line["eval/finding"] for line in lines if "eval/finding" in line)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("shift", "rate", "constant", "says"),
    [
        (0, 3e-3, False, ()),
        (0, 0.3, False, ("the images are not used", "nearly the same text")),
        (1, 3e-3, False, ("the images are not used",)),
        (0, 3e-3, True, ("the images are not used", "nearly the same text")),
    ],
    ids=["healthy", "rates_100_times_too_high", "captions_of_other_pictures", "an_encoder_that_says_nothing"],
)
def test_a_collapsed_run_is_named_by_the_run_itself(
    squares: Path, tmp_path: Path, shift: int, rate: float, constant: bool, says: tuple[str, ...]
) -> None:
    write_scenes(tmp_path / "train", 96, shift)
    write_scenes(tmp_path / "heldout", 24, 0)
    (said,) = run_distributed(fit, 1, squares, tmp_path / "run", rate, constant)
    assert [sentence for sentence in says if sentence not in said] == []
    assert bool(said) == bool(says), said
