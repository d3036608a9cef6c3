"""A checkpoint goes on under any other number of ranks, ZeRO stage and tensor-parallel degree, and back."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from git_scale.checkpoint.layout import rank_file, read_progress
from git_scale.checkpoint.state import INDEX, MOMENTS, WEIGHT, TrainingState
from git_scale.parallel.reshape import reshape
from git_scale.parallel.topology import Topology
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import tiny_run

CUT, END = 3, 6
DAVIT = {
    "name": "davit_tiny",
    "image_size": 32,
    "options": {"depths": [1, 1], "embed_dims": [16, 32], "num_heads": [4, 4], "window_size": 4},
}
DECODER = {"layers": 2, "width": 32, "heads": 4, "ffn": 64, "positions": 16, "dropout": 0.0, "init_std": 0.1}


def go_on(
    topology: Topology,
    device: torch.device,
    data: Path,
    run_dir: Path,
    stage: int,
    until: int,
    options: dict[str, Any],
) -> tuple[int, list[float], list[str]]:
    """Resumes, writes at once what it holds to run_dir/held, steps up to `until` and saves."""
    from git_scale.training.build import build_trainer

    run = tiny_run(
        data,
        run_dir,
        model={"encoder": DAVIT, "decoder": DECODER},
        train={"steps": 20, "micro_batch": 8 // topology.dp // 2, **options},
        parallel={"tp": topology.tp},
    )
    trainer = build_trainer(run, {"zero_optimization": {"stage": stage}}, topology, device)
    start = trainer.step
    held = run_dir / "held"
    held.mkdir(exist_ok=True)
    trainer.engine.save(held / rank_file(topology.global_rank))
    (held / INDEX).write_text(trainer.engine.state_index().to_json())
    losses, keys = [], []
    batches = trainer._batches
    trainer._batches = (keys.extend(batch.keys) or batch for batch in batches)
    while trainer.step < until:
        losses.append(trainer.train_step().loss)
        trainer.step += 1
    trainer.save()
    return start, losses, keys


def world(
    run: Path, data: Path, dp: int, tp: int, stage: int, until: int, **options: Any
) -> tuple[int, list[float], set[str]]:
    shutil.rmtree(run / "held", ignore_errors=True)
    answers = run_distributed(go_on, dp * tp, data, run, stage, until, options, tp=tp)
    assert all(answer[:2] == answers[0][:2] for answer in answers)
    return answers[0][0], answers[0][1], {key for answer in answers for key in answer[2]}


def assert_same_state(one: Path, other: Path) -> None:
    first, second = TrainingState(one), TrainingState(other)
    assert first.index.shapes == second.index.shapes
    assert first.index.adam_steps == second.index.adam_steps
    for name in first.index.shapes:
        assert first.kinds(name) == second.kinds(name), name
        for kind in first.kinds(name):
            assert torch.equal(first.read(name, kind), second.read(name, kind)), (name, kind)


@pytest.fixture(scope="module")
def written(
    request: Any, squares: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[float], set[str], str]:
    """A run of (dp 2, tp 2, ZeRO-3) cut after 3 steps, and the losses and samples of the 3 after them."""
    folder = tmp_path_factory.mktemp("reshape")
    frozen = {
        "freeze": ["encoder.backbone.stem.*", "decoder.embedding.positions.*"],
        "precision": request.param,
    }
    world(folder / "run", squares, 2, 2, 3, CUT, **frozen)
    shutil.copytree(folder / "run", folder / "whole")
    start, losses, keys = world(folder / "whole", squares, 2, 2, 3, END, **frozen)
    assert start == CUT and len(losses) == END - CUT
    state = TrainingState(folder / "run" / "checkpoints" / "step_00000003" / "state")
    assert state.index.tp == 2 and state.index.adam_steps == CUT
    assert state.kinds("decoder.layers.0.fc1.weight") == [WEIGHT, *MOMENTS]
    assert state.kinds("encoder.backbone.stem.conv.weight") == [WEIGHT]
    assert float(state.read("decoder.layers.0.fc1.weight", "exp_avg_sq").sum()) > 0
    return folder / "run", losses, keys, request.param


FP32 = [(1, 1, 0), (4, 1, 1), (2, 1, 2), (1, 4, 3), (1, 1, 3), (2, 2, 2), (1, 4, 0)]
BF16 = [(2, 1, 2), (1, 4, 0)]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("written", "dp", "tp", "stage"),
    [("fp32", *case) for case in FP32] + [("bf16", *case) for case in BF16],
    indirect=["written"],
)
def test_any_world_goes_on_from_any_other_and_back(
    written: tuple[Path, list[float], set[str], str],
    squares: Path,
    tmp_path: Path,
    dp: int,
    tp: int,
    stage: int,
) -> None:
    source, losses, keys, precision = written
    run = Path(shutil.copytree(source, tmp_path / "run"))
    frozen = {"freeze": ["encoder.backbone.stem.*", "decoder.embedding.positions.*"], "precision": precision}
    start, found, seen = world(run, squares, dp, tp, stage, END, **frozen)
    assert start == CUT
    assert_same_state(run / "held", run / "checkpoints" / "step_00000003" / "state")
    assert seen == keys, "the same samples follow"
    tolerance = 1e-5 if precision == "fp32" else 0.02
    torch.testing.assert_close(torch.tensor(found), torch.tensor(losses), rtol=tolerance, atol=tolerance)
    start, *_ = world(run, squares, 2, 2, 3, END, **frozen)
    assert start == END
    assert_same_state(run / "held", run / "checkpoints" / "step_00000006" / "state")


@pytest.mark.distributed
@pytest.mark.parametrize(("written", "tp"), [("fp32", 1), ("fp32", 4)], indirect=["written"])
def test_a_checkpoint_is_rewritten_for_another_degree(
    written: tuple[Path, list[float], set[str], str], squares: Path, tmp_path: Path, tp: int
) -> None:
    source, losses, keys, precision = written
    checkpoint = reshape(source, tmp_path / "new", tp)
    assert_same_state(checkpoint / "state", source / "checkpoints" / checkpoint.name / "state")
    assert (read_progress(checkpoint).tp, read_progress(checkpoint).world_size) == (tp, 2 * tp)
    frozen = {"freeze": ["encoder.backbone.stem.*", "decoder.embedding.positions.*"], "precision": precision}
    start, found, seen = world(tmp_path / "new", squares, 1, tp, 1, END, **frozen)
    assert (start, seen) == (CUT, keys)
    tolerance = 1e-5 if precision == "fp32" else 0.02
    torch.testing.assert_close(torch.tensor(found), torch.tensor(losses), rtol=tolerance, atol=tolerance)
