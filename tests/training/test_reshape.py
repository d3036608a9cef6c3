"""A checkpoint goes on under any other number of ranks, ZeRO stage and tensor-parallel degree, and back."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from git_scale.checkpoint.layout import rank_file, read_progress
from git_scale.checkpoint.state import EMA, INDEX, MOMENT_NAMES, WEIGHT, TrainingState
from git_scale.parallel.reshape import reshape
from git_scale.parallel.topology import Topology
from git_scale.testing.curves import ZERO, curve_of
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import tiny_run

CUT, END = 3, 6
DAVIT = {
    "name": "davit_tiny",
    "image_size": 32,
    "options": {"depths": [1, 1], "embed_dims": [16, 32], "num_heads": [4, 4], "window_size": 4},
}
DECODER = {"layers": 2, "width": 32, "heads": 4, "ffn": 64, "positions": 16, "dropout": 0.0, "init_std": 0.1}
KINDS = {"fp32": ("fp32", "joint"), "bf16": ("bf16", "joint"), "cross": ("fp32", "cross")}
"""Of runs: the precision, and how the text sees the image."""
FROZEN = ["encoder.backbone.stem.*", "decoder.embedding.positions.*"]


def go_on(
    topology: Topology,
    device: torch.device,
    data: Path,
    run_dir: Path,
    stage: int,
    until: int,
    kind: str,
) -> tuple[int, list[float], list[str]]:
    """Resumes, writes at once what it holds to run_dir/held, steps up to `until` and saves."""
    from git_scale.training.build import build_trainer

    precision, attention = KINDS[kind]
    run = tiny_run(
        data,
        run_dir,
        model={"encoder": DAVIT, "decoder": {**DECODER, "attention": attention}},
        train={
            "steps": 20,
            "micro_batch": 8 // topology.dp // 2,
            "precision": precision,
            "freeze": FROZEN,
        },
        parallel={"tp": topology.tp},
        optimizer={"ema": 0.9},
    )
    trainer = build_trainer(run, ZERO[stage], topology, device)
    start = trainer.step
    held = run_dir / "held"
    held.mkdir(exist_ok=True)
    trainer.engine.save(held / rank_file(topology.global_rank))
    (held / INDEX).write_text(trainer.engine.state_index().to_json())
    keys: list[str] = []
    batches = trainer._batches
    trainer._batches = (keys.extend(batch.keys) or batch for batch in batches)
    losses = [loss for loss, _ in curve_of(trainer, until - start)]
    trainer.save()
    return start, losses, keys


def world(
    run: Path, data: Path, dp: int, tp: int, stage: int, until: int, kind: str
) -> tuple[int, list[float], set[str]]:
    shutil.rmtree(run / "held", ignore_errors=True)
    answers = run_distributed(go_on, dp * tp, data, run, stage, until, kind, tp=tp)
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


def state_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}" / "state"


@dataclass(frozen=True)
class Written:
    """A run of (dp 2, tp 2, ZeRO-3) cut after 3 steps, and the losses and samples of the 3 after them."""

    run: Path
    losses: list[float]
    keys: set[str]
    kind: str


def assert_same_losses(found: list[float], source: Written) -> None:
    tolerance = 0.02 if source.kind == "bf16" else 1e-5
    torch.testing.assert_close(
        torch.tensor(found), torch.tensor(source.losses), rtol=tolerance, atol=tolerance
    )


@pytest.fixture(scope="module")
def written(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    """By kind, each written once."""

    @functools.cache
    def write(kind: str) -> Written:
        folder = tmp_path_factory.mktemp("reshape")
        world(folder / "run", squares, 2, 2, 3, CUT, kind)
        shutil.copytree(folder / "run", folder / "whole")
        start, losses, keys = world(folder / "whole", squares, 2, 2, 3, END, kind)
        assert start == CUT and len(losses) == END - CUT
        state = TrainingState(state_of(folder / "run", CUT))
        assert state.index.tp == 2 and state.index.adam_steps == CUT
        assert state.kinds("decoder.layers.0.fc1.weight") == [WEIGHT, *MOMENT_NAMES, EMA]
        assert state.kinds("encoder.backbone.stem.conv.weight") == [WEIGHT]
        assert float(state.read("decoder.layers.0.fc1.weight", "exp_avg_sq").sum()) > 0
        return Written(folder / "run", losses, keys, kind)

    return write


# each number of ranks, degree and stage once; the others are proofs
WORLDS = [("fp32", 1, 1, 0), ("fp32", 4, 1, 1), ("fp32", 1, 4, 3), ("bf16", 2, 1, 2), ("cross", 2, 1, 1)]
OTHERS = [
    ("fp32", 2, 1, 2),
    ("fp32", 1, 1, 3),
    ("fp32", 2, 2, 2),
    ("fp32", 1, 4, 0),
    ("bf16", 1, 4, 0),
    ("cross", 1, 1, 0),
    ("cross", 1, 4, 3),
]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("kind", "dp", "tp", "stage"),
    [*WORLDS, *(pytest.param(*world, marks=pytest.mark.proof) for world in OTHERS)],
)
def test_any_world_goes_on_from_any_other_and_back(
    written: Callable[[str], Written],
    squares: Path,
    tmp_path: Path,
    kind: str,
    dp: int,
    tp: int,
    stage: int,
) -> None:
    source = written(kind)
    run = Path(shutil.copytree(source.run, tmp_path / "run"))
    start, losses, keys = world(run, squares, dp, tp, stage, END, kind)
    assert start == CUT
    assert_same_state(run / "held", state_of(run, CUT))
    assert keys == source.keys, "the same samples follow"
    assert_same_losses(losses, source)
    start, *_ = world(run, squares, 2, 2, 3, END, kind)
    assert start == END
    assert_same_state(run / "held", state_of(run, END))


@pytest.mark.distributed
@pytest.mark.parametrize("tp", [1, 4])
def test_a_checkpoint_is_rewritten_for_another_degree(
    written: Callable[[str], Written], squares: Path, tmp_path: Path, tp: int
) -> None:
    source = written("fp32")
    checkpoint = reshape(source.run, tmp_path / "new", tp)
    assert_same_state(checkpoint / "state", state_of(source.run, CUT))
    assert (read_progress(checkpoint).tp, read_progress(checkpoint).world_size) == (tp, 2 * tp)
    start, losses, keys = world(tmp_path / "new", squares, 1, tp, 1, END, "fp32")
    assert (start, keys) == (CUT, source.keys)
    assert_same_losses(losses, source)
