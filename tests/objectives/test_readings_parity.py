"""Masked words, parallel prediction and left-out patches on any ranks: losses and gradient norms of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from git_scale.config import RunConfig
from git_scale.parallel.topology import Topology
from git_scale.testing.curves import ZERO, Curve, assert_same_curve, curve_of, train_curve, train_curves
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import tiny_run
from git_scale.training.build import build_trainer

STEPS = 3
LEARNED = {"objectives": {"lm": 0.5, "masked_lm": 1.5}, "parallel_share": 0.5}
# (dp, tp) -> ZeRO stages; all of them are among the proofs
PAIRWISE = {(2, 1): (0, 1, 2, 3), (1, 2): (0, 3)}
OTHERS = {(1, 1): (0, 1, 2, 3), (1, 2): (1, 2), (2, 2): (0, 1, 2, 3)}
LAYOUTS = [
    *(pytest.param(dp, tp, stages) for (dp, tp), stages in PAIRWISE.items()),
    *(pytest.param(dp, tp, stages, marks=pytest.mark.proof) for (dp, tp), stages in OTHERS.items()),
]


def a_run(
    squares: Path,
    run_dir: Path,
    micro_batch: int,
    tp: int = 1,
    patch_drop_rate: float = 0.5,
    **train: Any,
) -> RunConfig:
    learned = {**LEARNED, "micro_batch": micro_batch, **train}
    run = tiny_run(squares, run_dir, train=learned, data={"texts_per_image": 2}, parallel={"tp": tp})
    encoder = run.model.encoder.model_copy(update={"patch_drop_rate": patch_drop_rate})
    return run.model_copy(update={"model": run.model.model_copy(update={"encoder": encoder})})


@pytest.fixture(scope="module")
def serial(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Curve:
    run = a_run(squares, tmp_path_factory.mktemp("serial") / "run", micro_batch=8)
    (curve,) = run_distributed(train_curve, 1, run, ZERO[0], STEPS)
    return curve


@pytest.mark.distributed
@pytest.mark.parametrize(("dp", "tp", "stages"), LAYOUTS)
def test_any_ranks_equal_one(
    serial: Curve, squares: Path, tmp_path: Path, dp: int, tp: int, stages: tuple[int, ...]
) -> None:
    """Two micro-batches per step, so that texts stand beside others than in the serial run."""
    run = a_run(squares, tmp_path / "run", micro_batch=4 // dp, tp=tp)
    settings = [ZERO[stage] for stage in stages]
    for curves in run_distributed(train_curves, dp * tp, run, settings, STEPS, tp=tp):
        for curve in curves:
            assert_same_curve(curve, serial)


@pytest.mark.distributed
@pytest.mark.parametrize(
    "other", [{"parallel_share": 0.0}, {"objectives": {"lm": 0.5}}, {"patch_drop_rate": 0.0}]
)
def test_another_way_to_learn_is_another_curve(
    serial: Curve, squares: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    run = a_run(squares, tmp_path / "run", micro_batch=8, **other)
    (curve,) = run_distributed(train_curve, 1, run, ZERO[0], STEPS)
    with pytest.raises(AssertionError):
        assert_same_curve(curve, serial)


@pytest.mark.distributed
def test_images_divided_over_a_group_leave_out_the_same_patches(
    serial: Curve, squares: Path, tmp_path: Path
) -> None:
    run = a_run(squares, tmp_path / "run", micro_batch=4, tp=2)
    divided = run.model_copy(update={"parallel": run.parallel.model_copy(update={"sequence": True})})
    for curve in run_distributed(train_curve, 2, divided, ZERO[1], STEPS, tp=2):
        assert_same_curve(curve, serial)


def stop_and_go_on(
    topology: Topology, device: torch.device, run: RunConfig, halves: tuple[int, ...]
) -> tuple[Curve, dict[str, float]]:
    """Bit for bit: steps in as many starts as `halves` has, and the last evaluation."""
    curve: Curve = []
    for steps in halves:
        trainer = build_trainer(run, ZERO[3], topology, device)
        curve += curve_of(trainer, steps)
        trainer.save()
    return curve, trainer.evaluations.evaluators[""].evaluate(trainer.engine).metrics


@pytest.mark.distributed
def test_a_run_goes_on_bit_for_bit_and_its_masked_words_are_scored(squares: Path, tmp_path: Path) -> None:
    whole, parts = (a_run(squares, tmp_path / name, micro_batch=2) for name in ("whole", "parts"))
    expected, found = (
        run_distributed(stop_and_go_on, 2, run, halves)[0] for run, halves in ((whole, (4,)), (parts, (2, 2)))
    )
    assert found == expected
    accuracy = found[1]["eval/accuracy_masked_lm"]
    assert 0 <= accuracy <= 1 and "eval/accuracy_lm" not in found[1]
