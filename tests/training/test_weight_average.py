"""The average of the weights: against a loop over the serial run's weights, in evaluations, on its way out."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import git_scale
from git_scale.checkpoint.detect import open_checkpoint
from git_scale.checkpoint.layout import STATE_FOLDER, step_name
from git_scale.checkpoint.state import EMA, MOMENT_NAMES, WEIGHT, TrainingState
from git_scale.config import RunConfig
from git_scale.errors import CheckpointError, UserError
from git_scale.evaluation.checkpoint_evaluation import evaluate_checkpoint
from git_scale.parallel.topology import Topology
from git_scale.parallel.zero import RankState
from git_scale.stop import Stopped
from git_scale.testing.curves import ZERO, Curve, curve_of, train_curve
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import tiny_run

STEPS, SKIPPED = 7, 3
DECAY = 0.4  # reached after 5 applied steps: before them it grows
FROZEN = "encoder.backbone.patch_embed.proj.weight"
WIDE = {
    "stage": 3,
    "stage3_param_persistence_threshold": 0,
    "stage3_max_live_parameters": 6_000_000_000,
    "stage3_max_reuse_distance": 20_000_000_000,
}
"""Of ds_configs/zero3_wide.json what lets ZeRO-3 keep what it has gathered."""


def a_run(squares: Path, run_dir: Path, dp: int = 1, tp: int = 1, **given: Any) -> RunConfig:
    """A large eps: AdamW's step is then no sign of noise where the true gradient is 0, as that of a key's bias."""
    train = {"steps": 100, "micro_batch": 8 // dp // 2, "freeze": [FROZEN], **given.pop("train", {})}
    optimizer = {"ema": DECAY, "eps": 1e-4, **given.pop("optimizer", {})}
    return tiny_run(squares, run_dir, train=train, optimizer=optimizer, parallel={"tp": tp}, **given)


def poison(trainer: Any, factor: float) -> None:
    plain = type(trainer).micro_losses
    trainer.micro_losses = lambda *given: {
        name: factor * loss for name, loss in plain(trainer, *given).items()
    }


def held(trainer: Any, kinds: tuple[str, ...] = (WEIGHT, *MOMENT_NAMES, EMA)) -> dict[Any, np.ndarray]:
    pieces = trainer.engine._rank_state.pieces()
    return {
        (piece, kind): numbers().float().numpy().copy() for piece, kind, _, numbers in pieces if kind in kinds
    }


def train(topology: Topology, device: torch.device, run: RunConfig, ds_config: dict[str, Any]) -> Any:
    """Steps of which one is skipped; the weights by name, before the first and after each (of one rank)."""
    from git_scale.training.build import build_trainer

    trainer = build_trainer(run, ds_config, topology, device)
    weights = [held(trainer, (WEIGHT,))]
    for step in range(STEPS):
        is_bad = step == SKIPPED and topology.dp_rank == topology.dp - 1
        poison(trainer, math.nan if is_bad else 1.0)
        before = held(trainer, (EMA,))
        assert trainer.train_step().skipped == (step == SKIPPED)
        if step == SKIPPED:
            assert all(np.array_equal(before[key], now) for key, now in held(trainer, (EMA,)).items())
        trainer.step += 1
        weights.append(held(trainer, (WEIGHT,)))
    trainer.save()
    if topology.world_size > 1:
        return None
    return [{piece.name: numbers for (piece, _), numbers in step.items()} for step in weights]


def by_hand(
    weights: list[dict[str, np.ndarray]], decay: float = DECAY, grows: bool = True
) -> dict[str, np.ndarray]:
    """Of what is applied, from the values of each step, in double precision."""
    average = {name: numbers.astype(np.float64) for name, numbers in weights[0].items()}
    applied = [step for number, step in enumerate(weights[1:]) if number != SKIPPED]
    for number, step in enumerate(applied, 1):
        now = min(decay, (1 + number) / (10 + number)) if grows else decay
        average = {name: now * old + (1 - now) * step[name] for name, old in average.items()}
    return average


def difference(state: TrainingState, reference: dict[str, np.ndarray]) -> float:
    """The largest of an averaged number."""
    names = [name for name in state.index.shapes if EMA in state.kinds(name)]
    return max(
        float(np.abs(state.read(name, EMA).flatten().numpy() - reference[name]).max()) for name in names
    )


@pytest.fixture(scope="module")
def serial(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    """The weights of each step on one process, under stage 0."""
    run = a_run(squares, tmp_path_factory.mktemp("serial") / "run")
    return run_distributed(train, 1, run, ZERO[0])[0]


PAIRWISE = [(2, 1, 0), (1, 2, 0), (2, 2, 1), (1, 1, 1), (2, 1, 2), (1, 2, 2), (2, 2, 3), (1, 1, 3)]
OTHERS = [
    (dp, tp, stage) for dp in (1, 2) for tp in (1, 2) for stage in range(4) if (dp, tp, stage) not in PAIRWISE
]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("dp", "tp", "stage"),
    [*PAIRWISE, *(pytest.param(*case, marks=pytest.mark.proof) for case in OTHERS)],
)
def test_the_average_is_that_of_the_serial_runs_weights(
    squares: Path, tmp_path: Path, serial: list[dict[str, np.ndarray]], dp: int, tp: int, stage: int
) -> None:
    run_distributed(train, dp * tp, a_run(squares, tmp_path / "run", dp, tp), ZERO[stage], tp=tp)
    state = TrainingState(tmp_path / "run" / "checkpoints" / step_name(STEPS) / STATE_FOLDER)
    assert state.index.adam_steps == STEPS - 1
    assert state.kinds("decoder.layers.0.fc1.weight") == [WEIGHT, *MOMENT_NAMES, EMA]
    assert state.kinds(FROZEN) == [WEIGHT]
    assert difference(state, by_hand(serial)) < 1e-6
    # what a wrong rule would give is noticed
    assert difference(state, by_hand(serial, grows=False)) > 1e-5
    assert difference(state, by_hand([*serial[: SKIPPED + 1], *serial[SKIPPED:]])) > 1e-5
    assert difference(state, serial[-1]) > 1e-4


def gathered(trainer: Any) -> dict[str, np.ndarray]:
    """The weights of the forward pass, whole."""
    import deepspeed

    named = dict(trainer.engine.model.module.named_parameters())
    with deepspeed.zero.GatheredParameters([p for p in named.values() if hasattr(p, "ds_id")]):
        return {name: parameter.detach().float().numpy().copy() for name, parameter in named.items()}


def all_equal(one: dict[Any, np.ndarray], other: dict[Any, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


@dataclass
class Asked:
    """What a rank saw before, while and after its average was evaluated."""

    came_back: bool
    stood_in: bool
    """The forward pass had other weights meanwhile."""
    after: Curve
    """Of the three steps after it."""
    stops_and_errors_leave_nothing: bool
    metrics: dict[str, float]


def ask(topology: Topology, device: torch.device, run: RunConfig, ds_config: dict[str, Any]) -> Asked:
    from git_scale.training.build import build_trainer

    trainer = build_trainer(run, ds_config, topology, device)
    curve_of(trainer, 3)  # by the third ZeRO-3 knows what it gathers when
    before, forward = held(trainer), gathered(trainer)
    with trainer.engine.holding(EMA):
        during = gathered(trainer)
        assert all_equal(
            {key[0]: numbers for key, numbers in held(trainer, (WEIGHT,)).items() if (key[0], EMA) in before},
            {key[0]: numbers for key, numbers in before.items() if key[1] == EMA},
        )
    came_back = all_equal(held(trainer), before) and all_equal(gathered(trainer), forward)
    assert trainer.evaluate()
    came_back = came_back and all_equal(held(trainer), before) and all_equal(gathered(trainer), forward)
    trainer.save()
    evaluate = trainer.evaluations.evaluate
    for error in (Stopped, RuntimeError):

        def fail(*given: Any, error: type[Exception] = error) -> None:
            evaluate(*given)
            raise error

        trainer.evaluations.evaluate = fail
        try:
            assert not trainer.evaluate()
        except RuntimeError:  # as of one rank alone: it ends the run, and nothing is exchanged on its way
            trainer.engine._rank_state._refresh_weights()
        nothing = all_equal(held(trainer), before) and all_equal(gathered(trainer), forward)
    metrics = dict(trainer.evaluations.past[0])
    return Asked(came_back, not all_equal(during, forward), curve_of(trainer, 3), nothing, metrics)


def ask_without(
    topology: Topology, device: torch.device, run: RunConfig, ds_config: dict[str, Any], name: str
) -> Asked:
    """`name`: of what RankState has DeepSpeed do before its numbers are exchanged."""
    plain = RankState._refresh_weights

    def refresh(state: RankState) -> None:
        owner = state._engine if name == "empty_partition_cache" else state._zero
        setattr(owner, name, lambda: None)
        plain(state)
        delattr(owner, name)

    RankState._refresh_weights = refresh
    return ask(topology, device, run, ds_config)


KINDS: dict[str, tuple[dict[str, Any], str, int, int]] = {
    "zero0": ({"stage": 0}, "fp32", 2, 1),
    "zero1-bf16": ({"stage": 1}, "bf16", 2, 1),
    "zero2": ({"stage": 2}, "fp32", 2, 1),
    "zero3-tp2": ({"stage": 3}, "fp32", 2, 2),
    "zero3-bf16-wide": (WIDE, "bf16", 2, 1),
    "zero3-wide": (WIDE, "fp32", 2, 1),
    "zero3-in-pairs": ({**WIDE, "zero_hpz_partition_size": 2}, "fp32", 4, 1),
}
LONG = ("zero2", "zero3-tp2", "zero3-bf16-wide", "zero3-in-pairs")


@pytest.mark.distributed
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.proof if k in LONG else ()) for k in KINDS]
)
def test_an_evaluation_of_the_average_leaves_the_run_as_it_was(
    squares: Path, tmp_path: Path, kind: str
) -> None:
    zero, precision, dp, tp = KINDS[kind]
    run = a_run(squares, tmp_path / "run", dp, tp, train={"precision": precision}, eval={"weights": EMA})
    answers = run_distributed(ask, dp * tp, run, {"zero_optimization": zero}, tp=tp)
    other = run.model_copy(update={"run_dir": str(tmp_path / "other")})
    without = run_distributed(train_curve, dp * tp, other, {"zero_optimization": zero}, 6, tp=tp)
    for answer, curve in zip(answers, without, strict=True):
        assert answer.came_back and answer.stood_in and answer.stops_and_errors_leave_nothing
        assert answer.after == curve[3:], "the steps after it are those of a run that evaluates nothing"
    # the same figures as those of the average that lies on the disk, which no engine has put in a place
    if precision == "fp32":
        (from_disk,) = run_distributed(evaluated, 1, tmp_path / "run", squares, EMA)
        (trained,) = run_distributed(evaluated, 1, tmp_path / "run", squares, "trained")
        assert answers[0].metrics["eval/loss"] == pytest.approx(from_disk["eval/loss"], rel=1e-5)
        assert answers[0].metrics["eval/loss"] != pytest.approx(trained["eval/loss"], rel=1e-3)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("kind", "name", "came_back"),
    [
        # what ZeRO-3 has kept for a backward pass, which an evaluation does not have, is of the average
        ("zero3-wide", "empty_partition_cache", False),
        # an evaluation takes what it gathers from the copies in a node, of before
        pytest.param("zero3-in-pairs", "invalidate_secondary_tensor", True, marks=pytest.mark.proof),
    ],
)
def test_what_zero_3_has_gathered_is_to_be_let_go_of(
    squares: Path, tmp_path: Path, kind: str, name: str, came_back: bool
) -> None:
    zero, _, dp, _ = KINDS[kind]
    run = a_run(squares, tmp_path / "run", dp, eval={"weights": EMA})
    right, wrong = (
        run_distributed(function, dp, run.model_copy(update={"run_dir": str(tmp_path / folder)}), *given)[0]
        for folder, function, *given in (
            ("right", ask, {"zero_optimization": zero}),
            ("wrong", ask_without, {"zero_optimization": zero}, name),
        )
    )
    assert right.came_back and wrong.came_back == came_back
    assert came_back == (wrong.metrics["eval/loss"] != right.metrics["eval/loss"])


def evaluated(
    topology: Topology, device: torch.device, checkpoint: Path, squares: Path, weights: str
) -> dict[str, float]:
    found = evaluate_checkpoint(checkpoint, squares / "heldout", None, None, [], {}, topology, weights)
    return found.metrics


def go_on(
    topology: Topology, device: torch.device, run: RunConfig, stage: int, steps: int
) -> tuple[list[str], bool]:
    """Warnings of the start, and whether the average began as the weights are."""
    from git_scale.training.build import build_trainer

    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("git_scale").addHandler(handler)
    trainer = build_trainer(run, ZERO[stage], topology, device)
    now = held(trainer)
    averages = {piece: numbers for (piece, kind), numbers in now.items() if kind == EMA}
    begins = bool(averages) and all(np.array_equal(now[piece, WEIGHT], x) for piece, x in averages.items())
    curve_of(trainer, steps)
    trainer.save()
    return said, begins


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_an_average_begins_where_a_checkpoint_has_none_and_ends_where_a_run_has_none(
    squares: Path, tmp_path: Path, stage: int
) -> None:
    with_average = a_run(squares, tmp_path / "run", 2)
    without = a_run(squares, tmp_path / "run", 2, optimizer={"ema": None})

    def kinds(step: int) -> list[str]:
        state = TrainingState(tmp_path / "run" / "checkpoints" / step_name(step) / STATE_FOLDER)
        return state.kinds("decoder.layers.0.fc1.weight")

    ((said, begins), _) = run_distributed(go_on, 2, without, stage, 2)
    assert said == [] and not begins and kinds(2) == [WEIGHT, *MOMENT_NAMES]
    ((said, begins), _) = run_distributed(go_on, 2, with_average, stage, 2)
    assert len(said) == 1 and "has no average of the weights, so that it begins with them" in said[0]
    assert begins and kinds(4) == [WEIGHT, *MOMENT_NAMES, EMA]
    ((said, begins), _) = run_distributed(go_on, 2, with_average, stage, 1)
    assert said == [] and not begins, "its own average goes on"
    ((said, begins), _) = run_distributed(go_on, 2, without, stage, 1)
    assert len(said) == 1 and "optimizer.ema is not set" in said[0]
    assert not begins and kinds(6) == [WEIGHT, *MOMENT_NAMES]


@pytest.fixture(scope="module")
def averaged(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that evaluates its average, with figures of its last step."""
    run = a_run(squares, tmp_path_factory.mktemp("averaged") / "run", eval={"weights": EMA})
    run_distributed(train, 1, run, ZERO[1])
    figures = {"step": STEPS, "eval/cider": 0.5}
    (Path(run.run_dir) / "metrics.jsonl").write_text(json.dumps(figures) + "\n")
    return Path(run.run_dir)


@pytest.fixture(scope="module")
def convert() -> Callable[[list[str]], int]:
    path = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"
    spec = importlib.util.spec_from_file_location("convert_checkpoint", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool.main


@pytest.mark.distributed
def test_an_export_of_the_average_is_the_average(
    averaged: Path, tmp_path: Path, convert: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    state = TrainingState(averaged / "checkpoints" / step_name(STEPS) / STATE_FOLDER)
    assert (
        convert(["export", str(averaged), str(tmp_path / "ema"), "--format", "native", "--weights", EMA]) == 0
    )
    assert convert(["export", str(averaged), str(tmp_path / "last"), "--format", "native"]) == 0
    exported, last = (open_checkpoint(tmp_path / name).weights for name in ("ema", "last"))
    loaded = git_scale.load(averaged, "cpu", weights=EMA).predictor.model.state_dict()
    for name in state.index.shapes:
        learns = EMA in state.kinds(name)
        expected = state.read(name, EMA if learns else WEIGHT)
        assert torch.equal(exported.read(name), expected), name
        assert torch.equal(loaded[name], expected), name
        assert torch.equal(last.read(name), state.read(name)), name
    assert not torch.equal(exported.read("decoder.head.bias"), last.read("decoder.head.bias"))
    # figures of the average are none of the trained weights
    card = (tmp_path / "ema" / "README.md").read_text()
    assert "the moving average of its weights" in card and "| eval/cider | 0.5 |" in card
    card = (tmp_path / "last" / "README.md").read_text()
    assert "moving average" not in card and "Nothing was measured" in card
    capsys.readouterr()
    assert convert(["inspect", str(averaged)]) == 0
    assert f"average    optimizer.ema={DECAY}" in capsys.readouterr().out
    assert (
        convert(
            ["export", str(tmp_path / "ema"), str(tmp_path / "x"), "--format", "native", "--weights", EMA]
        )
        == 2
    )
    assert "holds no average of its weights, which weights=ema asks for" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.distributed
def test_an_average_that_is_not_there_is_one_error(averaged: Path, squares: Path, tmp_path: Path) -> None:
    run = a_run(squares, tmp_path / "run", optimizer={"ema": None})
    run_distributed(go_on, 1, run, 0, 1)
    with pytest.raises(CheckpointError, match=r"or a checkpoint of a run with optimizer\.ema"):
        open_checkpoint(tmp_path / "run", EMA)
    with pytest.raises(UserError, match="weights='average': trained or ema is needed"):
        open_checkpoint(averaged, "average")
