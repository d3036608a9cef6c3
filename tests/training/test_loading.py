"""A run whose data stops coming on one rank ends on all of them, with a checkpoint and one message."""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from git_scale.data.reader import WatchedReader
from git_scale.errors import LoaderError
from git_scale.parallel.topology import Topology
from git_scale.stop import StopRequest
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import tiny_run


def fit(
    topology: Topology, device: torch.device, squares: Path, run_dir: Path, evil: str, sections: Any
) -> tuple[int | str, int, str]:
    """Exit code or error, last step, and what was said; the last rank's 30th sample is `evil`."""
    from git_scale.training.build import build_trainer

    heard = run_dir.parent / f"said-{topology.global_rank}"
    logging.basicConfig(filename=heard, level=logging.INFO, force=True)
    run = tiny_run(squares, run_dir, **sections)
    with StopRequest() as stop_request:
        trainer = build_trainer(run, {"zero_optimization": {"stage": 1}}, topology, device)
        if topology.global_rank == topology.world_size - topology.tp:
            _make_evil(evil, os.getpid())
        try:
            code: int | str = int(trainer.fit(stop_request))
        except LoaderError as error:
            code = str(error)
        trainer.writer.close()
    return code, trainer.step, heard.read_text()


def _make_evil(evil: str, trainer: int) -> None:
    plain, count = WatchedReader.read, 0

    def read(self: WatchedReader, number: int) -> Any:
        nonlocal count
        count += 1
        raw = plain(self, number)
        if evil == "hangs" and count == 30:
            threading.Event().wait()
        if evil == "hangs, and a stop comes" and count == 30:
            os.kill(trainer, signal.SIGTERM)
            threading.Event().wait()
        if evil == "kills its reader" and number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        if evil == "kills every reader":
            os.kill(os.getpid(), signal.SIGKILL)
        return raw

    WatchedReader.read = read  # type: ignore[method-assign]


SECTIONS: dict[str, Any] = {"train": {"steps": 20}, "data": {"workers": 1, "max_bad_share": 1.0}}


@pytest.mark.distributed
@pytest.mark.parametrize("tp", [1, 2])
def test_a_read_that_hangs_on_one_rank_ends_all_with_a_checkpoint(
    squares: Path, tmp_path: Path, tp: int
) -> None:
    sections = {
        "train": SECTIONS["train"],
        "data": SECTIONS["data"] | {"sample_timeout_s": 1},
        "parallel": {"tp": tp},
    }
    answers = run_distributed(fit, 2, squares, tmp_path / "run", "hangs", sections, tp=tp)
    step = 29 // (8 if tp == 2 else 4)  # that many whole steps of the rank were read before
    for code, last, _ in answers:
        assert (code, last) == (75, step)
    assert (tmp_path / f"run/checkpoints/step_{step:08d}").is_dir()
    (line,) = [line for line in answers[0][2].splitlines() if "is the last of this start" in line]
    assert (
        "squares-000000.tar:00" in line and "has been read for" in line and "the same command goes on" in line
    )


@pytest.mark.distributed
@pytest.mark.parametrize("workers", [0, 1])
def test_a_stop_is_heard_while_a_read_hangs(squares: Path, tmp_path: Path, workers: int) -> None:
    sections = {"train": SECTIONS["train"], "data": SECTIONS["data"] | {"workers": workers}}
    answers = run_distributed(fit, 2, squares, tmp_path / "run", "hangs, and a stop comes", sections)
    (code, step, _), other = answers
    assert other[:2] == (code, step) and code == 75
    assert 0 <= step <= 7, "a worker reads ahead"
    assert step == 0 or (tmp_path / f"run/checkpoints/step_{step:08d}").is_dir()


@pytest.mark.distributed
def test_a_run_goes_on_past_a_sample_that_kills_its_reader(squares: Path, tmp_path: Path) -> None:
    answers = run_distributed(fit, 2, squares, tmp_path / "run", "kills its reader", SECTIONS)
    assert [answer[:2] for answer in answers] == [(0, 20)] * 2
    said = answers[0][2]  # by the first rank, of the other one's sample
    assert "x quarantined, because its reader died or hung" in said and "(squares-000000.tar:0005" in said
    again = {"train": {"steps": 21}, "data": SECTIONS["data"]}
    answers = run_distributed(fit, 2, squares, tmp_path / "run", "nothing", again)
    assert [answer[:2] for answer in answers] == [(0, 21)] * 2
    assert "data.train: not read, because" in answers[0][2] and "squares-000000.tar:0005" in answers[0][2]


@pytest.mark.distributed
def test_workers_that_keep_dying_on_one_rank_end_all_with_the_remedy(squares: Path, tmp_path: Path) -> None:
    sections = {
        "train": SECTIONS["train"] | {"global_batch": 64, "micro_batch": 32},
        "data": SECTIONS["data"],
    }
    answers = run_distributed(fit, 2, squares, tmp_path / "run", "kills every reader", sections)
    for code, step, _ in answers:
        assert "set data.workers lower" in str(code) and step == 0
