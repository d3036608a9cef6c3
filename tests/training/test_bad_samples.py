"""Unusable samples: counted over all ranks, said with their reasons, and the end of a run that has too many."""

from __future__ import annotations

import io
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset

from git_scale.parallel.topology import Topology
from git_scale.stop import StopRequest
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import draw_square, tiny_run
from git_scale.training.bad_samples import BadSamples


def counted(steps: list[tuple[int, int]], max_share: float = 0.01) -> list[bool]:
    """The verdict after each of (samples, bad)."""
    samples, verdicts = BadSamples(max_share, (0, 0)), []
    for number, bad in steps:
        samples.record(number, bad, [])
        verdicts.append(samples.are_too_many)
    return verdicts


def test_a_share_counts_from_1000_samples_on() -> None:
    assert counted([(500, 400), (499, 0), (1, 0)]) == [False, False, True]
    assert counted([(1000, 10), (100, 2)]) == [False, True]
    assert counted([(1000, 11)], max_share=0.02) == [False]
    assert counted([(1000, 999), (1000, 999)], max_share=1) == [False, False]


def test_the_first_64_all_unusable_are_too_many_at_once() -> None:
    assert counted([(32, 32), (31, 31), (1, 1)]) == [False, False, True]
    assert counted([(32, 32), (32, 31)]) == [False, False]
    assert counted([(64, 64)], max_share=1) == [False]


def test_the_last_10000_samples_count() -> None:
    steps = [(100, 1)] * 100  # at the bound
    assert not any(counted([*steps, *steps]))
    assert counted([*steps, (100, 2)])[-1]
    assert not any(counted([(5000, 49), *[(5000, 0)] * 2, (5000, 49), (5000, 50)])), (
        "the old ones are forgotten"
    )
    assert counted([(5000, 0), (5000, 49), (5000, 52)])[-1]
    assert counted([(20_000, 201)]) == [True], "a step larger than the window"


def test_the_window_goes_on_where_an_earlier_start_left_it() -> None:
    first = BadSamples(0.01, (0, 0))
    first.record(900, 9, [])
    assert BadSamples(0.01, first.recent).recent == (900, 9)
    second = BadSamples(0.01, first.recent)
    second.record(100, 2, [])
    assert second.are_too_many


def write_squares_of(folder: Path, count: int, is_bad: Any, kind: str = "picture") -> None:
    """A shard of squares, of which those with is_bad(number) cannot be used."""
    folder.mkdir(parents=True)
    with webdataset.TarWriter(str(folder / "squares-000000.tar"), encoder=False) as tar:
        for number in range(count):
            image, text = draw_square("red", "big"), {"captions": ["a big red square"]}
            if is_bad(number):
                image = b"\x89PNG no image" if kind == "picture" else image
                text = text if kind == "picture" else {"captions": []}
            tar.write({"__key__": f"{number:04d}", "png": image, "json": json.dumps(text).encode()})


def fit(
    topology: Topology, device: torch.device, squares: Path, run_dir: Path, stage: int, sections: Any
) -> dict[str, Any]:
    """What a run does: exit code, steps, what its first rank says, and whether its weights changed."""
    from git_scale.training.build import build_trainer

    heard = io.StringIO()
    logging.basicConfig(stream=heard, level=logging.INFO, force=True)
    run = tiny_run(squares, run_dir, **sections)
    trainer = build_trainer(run, {"zero_optimization": {"stage": stage}}, topology, device)
    before = held(trainer)
    code = int(trainer.fit(StopRequest()))
    trainer.writer.close()
    after = held(trainer)
    return {
        "code": code,
        "step": trainer.step,
        "said": heard.getvalue(),
        "changed": [name for name in before if not torch.equal(before[name], after[name])],
        "skipped": trainer.skipped_steps,
    }


def held(trainer: Any) -> dict[str, torch.Tensor]:
    """Weights and moments of this rank."""
    found = trainer.engine._rank_state.pieces()
    return {f"{piece.name} {kind}": values().detach().clone() for piece, kind, _, values in found}


@pytest.mark.distributed
@pytest.mark.parametrize(("stage", "tp"), [(0, 1), (1, 1), (2, 1), (3, 1), (1, 2)])
def test_a_run_without_usable_samples_changes_nothing_and_ends_with_76(
    squares: Path, tmp_path: Path, stage: int, tp: int
) -> None:
    write_squares_of(tmp_path / "data", 16, lambda number: True)
    sections = {"data": {"train": str(tmp_path / "data")}, "train": {"steps": 50}, "parallel": {"tp": tp}}
    answers = run_distributed(fit, 2, squares, tmp_path / "run", stage, sections, tp=tp)
    for answer in answers:
        assert (answer["code"], answer["step"], answer["skipped"]) == (76, 8, 8), "64 samples in steps of 8"
        assert answer["changed"] == []
    said = answers[0]["said"]
    assert said.count("the run ends, with a checkpoint and exit code 76: 64 of 64 (100 %)") == 1
    assert "64 x the image (N bytes) cannot be decoded: no JPEG, PNG, WEBP (squares" in said
    progress = json.loads((tmp_path / "run/checkpoints/step_00000008/progress.json").read_text())
    assert (progress["skipped_samples"], progress["recent_bad"]) == (64, 0)


@pytest.mark.distributed
def test_a_step_without_targets_between_others_changes_nothing(squares: Path, tmp_path: Path) -> None:
    answers = run_distributed(steps_around_one_without_targets, 2, squares, tmp_path / "run")
    for changed, losses in answers:
        assert changed == [True, False, True]
        assert math.isnan(losses[1]) and 0 < losses[2] < losses[0]


def steps_around_one_without_targets(
    topology: Topology, device: torch.device, squares: Path, run_dir: Path
) -> tuple[list[bool], list[float]]:
    from dataclasses import replace

    from git_scale.training.build import build_trainer

    trainer = build_trainer(tiny_run(squares, run_dir), {"zero_optimization": {"stage": 2}}, topology, device)
    plain = trainer._batches
    changed, losses = [], []
    for step in range(3):
        batches = [next(plain)]
        if step == 1:
            batches = [replace(batch, rows=batch.rows[:0], labels=batch.labels[:0]) for batch in batches]
        trainer._batches = iter(batches)
        before = held(trainer)
        losses.append(trainer.train_step().loss)
        trainer.step += 1
        after = held(trainer)
        changed.append(any(not torch.equal(before[name], after[name]) for name in before))
    return changed, losses


@pytest.mark.distributed
def test_the_share_of_all_ranks_ends_a_run_and_all_their_reasons_are_said(
    squares: Path, tmp_path: Path
) -> None:
    write_squares_of(tmp_path / "data", 40, lambda number: number == 3, kind="text")  # 2.5 %
    sections = {
        "data": {"train": str(tmp_path / "data"), "texts_per_image": 1},
        "train": {"steps": 200, "global_batch": 40, "micro_batch": 20},
        "log": {"every": 10},
    }
    first, second = run_distributed(fit, 2, squares, tmp_path / "run", 1, sections)
    assert (first["code"], first["step"]) == (second["code"], second["step"]) == (76, 25), "at 1,000 samples"
    assert "step 10: 9 of 360 (2.5 %) samples could not be used" in first["said"]
    assert first["said"].count("x no caption, or only empty ones (squares-000000.tar:0003") == 4
    sections["data"]["max_bad_share"] = 0.03
    sections["train"]["steps"] = 27
    again = run_distributed(fit, 2, squares, tmp_path / "run", 1, sections)
    assert [answer["code"] for answer in again] == [0, 0], "the same command with a higher bound goes on"


@pytest.mark.distributed
def test_without_a_bound_a_run_that_learns_nothing_still_ends(squares: Path, tmp_path: Path) -> None:
    write_squares_of(tmp_path / "data", 16, lambda number: True)
    data = {"train": str(tmp_path / "data"), "max_bad_share": 1.0}
    (answer,) = run_distributed(fit, 1, squares, tmp_path / "run", 1, {"data": data, "train": {"steps": 50}})
    assert (answer["code"], answer["step"], answer["changed"]) == (76, 10, [])
