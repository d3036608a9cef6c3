"""A stop or a kill around an evaluation: what was due is made up for, and `best` is that of an undisturbed run."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from git_scale.checkpoint import layout
from git_scale.errors import UserError
from git_scale.parallel.topology import Topology
from git_scale.stop import Stopped, StopRequest, stop_requested
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import tiny_run
from git_scale.training.lease import LEASE, this_holder

SECTIONS: dict[str, Any] = {
    "train": {"steps": 6, "micro_batch": 2},
    "eval": {"every": 3},
    "checkpoint": {"every": 3, "best": "exact_match"},
    "log": {"every": 1},
}


class KilledError(Exception):
    """In the place of a SIGKILL: nothing behind it happens."""


def build(topology: Topology, device: torch.device, squares: Path, run_dir: Path) -> Any:
    from git_scale.training.build import build_trainer

    return build_trainer(
        tiny_run(squares, run_dir, **SECTIONS), {"zero_optimization": {"stage": 1}}, topology, device
    )


def start(topology: Topology, device: torch.device, squares: Path, run_dir: Path, cut: str) -> int | str:
    """One start of the run, with what befalls it; its exit code."""
    trainer = build(topology, device, squares, run_dir)
    with StopRequest() as stop_request:
        befall(trainer, cut, topology)
        try:
            return int(trainer.fit(stop_request))
        except KilledError:
            return "killed"
        finally:
            trainer.writer.close()


def befall(trainer: Any, cut: str, topology: Topology) -> None:
    what, _, step = cut.partition(" at ")
    is_last = topology.global_rank == topology.world_size - 1

    def signal_before(owner: Any, name: str, at: int) -> None:
        plain = getattr(owner, name)

        def signalling(*args: Any) -> Any:
            if is_last and trainer.step == at and not stop_requested():  # a second one would end it at once
                signal.raise_signal(signal.SIGUSR1)  # one rank alone gets it
            return plain(*args)

        setattr(owner, name, signalling)

    def killed(*_: Any) -> None:
        if trainer.step == int(step):
            raise KilledError

    if what == "step":
        signal_before(trainer, "train_step", int(step) - 1)
    elif what == "evaluation":  # in its first batch of two
        signal_before(trainer.evaluations.evaluators[""]._task, "predict", int(step))
    elif what == "save":
        signal_before(trainer, "save", int(step))
    elif what == "mark":
        trainer.checkpoints.mark_best = killed
    elif what == "killed evaluation":
        trainer.evaluations.evaluators[""].evaluate = killed


def evaluations(run_dir: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["eval/exact_match"]) for line in lines if "eval/exact_match" in line]


@pytest.fixture(scope="module")
def undisturbed(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run_distributed(start, 2, squares, run_dir, "") == [0, 0]
    return run_dir


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("cut", "code", "stands_at", "evaluated"),
    [
        ("step at 3", 75, 3, []),
        ("evaluation at 3", 75, 3, []),
        ("save at 3", 75, 3, []),
        ("killed evaluation at 3", "killed", 3, []),
        ("mark at 3", "killed", 3, [3]),
        ("step at 6", 75, 6, [3]),
        ("evaluation at 6", 75, 6, [3]),
        ("mark at 6", "killed", 6, [3, 6]),
    ],
)
def test_an_evaluation_that_was_cut_off_is_made_up_for(
    squares: Path,
    tmp_path: Path,
    undisturbed: Path,
    cut: str,
    code: int | str,
    stands_at: int,
    evaluated: list[int],
) -> None:
    run_dir = tmp_path / "run"
    assert run_distributed(start, 2, squares, run_dir, cut) == [code, code]
    assert layout.published(run_dir)[0].name == layout.step_name(stands_at), "saved before it evaluates"
    assert [step for step, _ in evaluations(run_dir)] == evaluated
    assert run_distributed(start, 2, squares, run_dir, "") == [0, 0]
    assert [step for step, _ in evaluations(run_dir)] == [3, 6]
    assert evaluations(run_dir) == evaluations(undisturbed)
    assert layout.read_best(run_dir) == layout.read_best(undisturbed)
    assert (run_dir / "checkpoints" / "best").resolve().name == layout.step_name(6), "later of equal ones"


def again(topology: Topology, device: torch.device, squares: Path, run_dir: Path) -> int:
    """A finished run started once more, in which nothing may be evaluated."""
    trainer = build(topology, device, squares, run_dir)
    trainer.evaluations.evaluators[""].evaluate = lambda *_: 1 / 0
    return int(trainer.fit(StopRequest()))


@pytest.mark.distributed
def test_a_finished_run_does_not_evaluate_again(squares: Path, undisturbed: Path) -> None:
    assert run_distributed(again, 2, squares, undisturbed) == [0, 0]


def stopped_while_building(
    topology: Topology, device: torch.device, squares: Path, run_dir: Path
) -> tuple[str, bool]:
    with StopRequest():
        if topology.global_rank == 1:
            signal.raise_signal(signal.SIGTERM)
        try:
            build(topology, device, squares, run_dir)
        except Stopped:
            return "stopped", (run_dir / "checkpoints").exists()
    return "built", True


@pytest.mark.distributed
def test_a_stop_during_the_start_ends_all_ranks(squares: Path, tmp_path: Path) -> None:
    assert run_distributed(stopped_while_building, 2, squares, tmp_path / "run") == [("stopped", False)] * 2


def taken_over(topology: Topology, device: torch.device, squares: Path, run_dir: Path) -> str:
    """Another start takes the folder during the second step; what this one says."""
    trainer = build(topology, device, squares, run_dir)
    plain = trainer.train_step

    def step(stop: bool = False) -> Any:
        if trainer.step == 1 and trainer.lease is not None:
            (run_dir / LEASE).unlink()
            (run_dir / LEASE).write_bytes(replace(this_holder(), host="n7").to_bytes())
            trainer.lease.renew()  # as its thread does, every 10 s
        return plain(stop)

    trainer.train_step = step
    with StopRequest() as stop_request:
        try:
            return str(trainer.fit(stop_request))
        except UserError as error:
            return str(error)


@pytest.mark.distributed
def test_a_run_whose_folder_was_taken_over_writes_nothing_more(squares: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    for said in run_distributed(taken_over, 2, squares, run_dir):
        assert "another start has taken this run over" in said and "is not saved" in said
    assert layout.published(run_dir) == []
    assert json.loads((run_dir / LEASE).read_text())["host"] == "n7"
