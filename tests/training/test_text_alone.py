"""Text without images beside captions: on any ranks the losses of one process, and held-out text's perplexity."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from git_scale.config import RunConfig
from git_scale.parallel.topology import Topology
from git_scale.testing.curves import ZERO, Curve, assert_same_curve, curve_of, train_curve, train_curves
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import COLOURS, SIDES, describe, tiny_run
from git_scale.training.build import build_trainer

STEPS = 3
OTHERS = {(1, 1): (0, 1, 2, 3), (1, 2): (1, 2), (2, 2): (0, 1, 2, 3)}
LAYOUTS = [
    pytest.param(2, 1, (0, 1, 2, 3)),
    pytest.param(1, 2, (0, 3)),
    *(pytest.param(dp, tp, stages, marks=pytest.mark.proof) for (dp, tp), stages in OTHERS.items()),
]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 lines to learn and 11 held out, of which some are longer than a stretch."""
    folder = tmp_path_factory.mktemp("texts")
    said = [describe(colour, side) for colour in COLOURS for side in SIDES]
    for name, count in (("train", 40), ("heldout", 11)):
        (folder / name).mkdir()
        words = [
            [said[(3 * line + word) % len(said)] for word in range(1 + line % 4)] for line in range(count)
        ]
        lines = list(map(" ".join, words))
        (folder / name / "lines.txt").write_text("\n".join(lines) + f"\n{name}\n")
    return folder


def a_run(squares: Path, texts: Path, run_dir: Path, micro_batch: int, **sections: Any) -> RunConfig:
    sources = [
        {"path": str(squares / "train"), "weight": 0.5},
        {"path": str(texts / "train"), "weight": 0.5, "task": "text_only", "heldout": str(texts / "heldout")},
    ]
    attention = sections.pop("attention", "joint")
    run = tiny_run(
        squares,
        run_dir,
        data={"train": None, "sources": sources},
        train={"micro_batch": micro_batch, "objectives": {"lm": 1.0, "masked_lm": 0.5}},
        **sections,
    )
    decoder = run.model.decoder.model_copy(update={"attention": attention})
    return run.model_copy(update={"model": run.model.model_copy(update={"decoder": decoder})})


@pytest.fixture(scope="module")
def serial(squares: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Curve:
    run = a_run(squares, texts, tmp_path_factory.mktemp("serial") / "run", micro_batch=8)
    (curve,) = run_distributed(train_curve, 1, run, ZERO[0], STEPS)
    return curve


@pytest.mark.distributed
@pytest.mark.parametrize(("dp", "tp", "stages"), LAYOUTS)
def test_any_ranks_equal_one(
    serial: Curve, squares: Path, texts: Path, tmp_path: Path, dp: int, tp: int, stages: tuple[int, ...]
) -> None:
    """One sample per micro-batch: half of them have no image at all, on one rank while another has one."""
    run = a_run(squares, texts, tmp_path / "run", micro_batch=1, parallel={"tp": tp})
    settings = [ZERO[stage] for stage in stages]
    for curves in run_distributed(train_curves, dp * tp, run, settings, STEPS, tp=tp):
        for curve in curves:
            assert_same_curve(curve, serial)


@pytest.mark.distributed
def test_images_divided_over_a_group_may_be_fewer_than_texts(
    serial: Curve, squares: Path, texts: Path, tmp_path: Path
) -> None:
    """Two samples per micro-batch, of which one has an image: a black one makes up the second."""
    run = a_run(squares, texts, tmp_path / "run", micro_batch=2, parallel={"tp": 2, "sequence": True})
    for curve in run_distributed(train_curve, 2, run, ZERO[1], STEPS, tp=2):
        assert_same_curve(curve, serial)


@pytest.mark.distributed
def test_with_cross_attention_too(serial: Curve, squares: Path, texts: Path, tmp_path: Path) -> None:
    alone = a_run(squares, texts, tmp_path / "alone", micro_batch=8, attention="cross")
    (expected,) = run_distributed(train_curve, 1, alone, ZERO[0], STEPS)
    with pytest.raises(AssertionError):
        assert_same_curve(expected, serial)
    shared = a_run(squares, texts, tmp_path / "shared", micro_batch=1, attention="cross", parallel={"tp": 2})
    for curve in run_distributed(train_curve, 2, shared, ZERO[3], STEPS, tp=2):
        assert_same_curve(curve, expected)


def with_an_image_for_all(topology: Topology, device: torch.device, run: RunConfig) -> Curve:
    """The mistake that black images are seen."""
    from git_scale.objectives import objective

    objective.placement_of = lambda batch: None
    return curve_of(build_trainer(run, ZERO[0], topology, device), STEPS)


@pytest.mark.distributed
def test_a_black_image_is_not_no_image(serial: Curve, squares: Path, texts: Path, tmp_path: Path) -> None:
    run = a_run(squares, texts, tmp_path / "run", micro_batch=1)
    (curve,) = run_distributed(with_an_image_for_all, 1, run)
    with pytest.raises(AssertionError):
        assert_same_curve(curve, serial)


def evaluate(topology: Topology, device: torch.device, run: RunConfig, stage: int) -> dict[str, float]:
    """Of the held-out text, after a step."""
    trainer = build_trainer(run, ZERO[stage], topology, device)
    trainer.train_step()
    (_, evaluator) = trainer.evaluations.evaluators.values()
    return evaluator.evaluate(trainer.engine).metrics


@pytest.mark.distributed
def test_the_perplexity_of_held_out_text_on_any_ranks(squares: Path, texts: Path, tmp_path: Path) -> None:
    """12 lines in batches of 2: ranks with another number of lines than others, and empty slots."""
    run = a_run(squares, texts, tmp_path / "run", micro_batch=2)
    (alone,) = run_distributed(evaluate, 1, run, 0)
    assert alone["eval/perplexity"] == pytest.approx(math.exp(alone["eval/loss"]))
    assert 1 < alone["eval/perplexity"] < 100  # of 34 pieces, and hardly trained
    assert set(alone) == {"eval/loss", "eval/perplexity", "eval/accuracy_masked_lm"}
    for found in run_distributed(evaluate, 2, run, 3):
        assert found == pytest.approx(alone, rel=1e-5)
