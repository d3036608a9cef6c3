"""Captions of held-out images: each sample once, whatever the ranks, and the same from the checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import git_scale
from git_scale.data.images import decode
from git_scale.data.store import open_store
from git_scale.data.tokenizer import load_tokenizer
from git_scale.errors import DataError
from git_scale.evaluation.evaluator import Evaluator
from git_scale.parallel.topology import Topology
from git_scale.tasks import build_task
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import load_weights, tiny_run

STEPS = 80
Predictions = list[tuple[int, str]]


def train_and_evaluate(
    topology: Topology, device: torch.device, squares: Path, run_dir: Path, stage: int
) -> tuple[Predictions, float, bool]:
    from git_scale.training.build import build_trainer

    train = {"steps": STEPS, "micro_batch": 8 // topology.dp}
    run = tiny_run(squares, run_dir, train=train, optimizer={"encoder_lr": 3e-3, "decoder_lr": 3e-3})
    trainer = build_trainer(run, {"zero_optimization": {"stage": stage}}, topology, device)
    for _ in range(STEPS):
        trainer.train_step()
        trainer.step += 1
    trainer.save()
    evaluation = trainer.evaluations.evaluators[""].evaluate(trainer.engine)
    predictions = [(item.index, item.generated) for item in evaluation.predictions]
    return predictions, evaluation.metrics["eval/exact_match"], trainer.engine.model.training


def captions_from_checkpoint(run_dir: Path, heldout: Path) -> list[str]:
    shards = open_store(heldout)
    pictures = [decode(shards.read(index).image or b"") for index in range(len(shards))]
    return git_scale.load(run_dir, device="cpu").caption(pictures, beams=1)


@pytest.mark.distributed
@pytest.mark.parametrize(("world_size", "stage"), [(1, 0), (2, 1), (2, 3)])
def test_each_sample_is_captioned_once_and_as_from_the_checkpoint(
    squares: Path, tmp_path: Path, world_size: int, stage: int
) -> None:
    answers = run_distributed(train_and_evaluate, world_size, squares, tmp_path / "run", stage)
    predictions, score, training_again = answers[0]
    assert all(answer == answers[0] for answer in answers), "the same on every rank"
    assert [index for index, _ in predictions] == list(range(7))
    assert 0 <= score <= 1 and training_again
    from_checkpoint = captions_from_checkpoint(tmp_path / "run", squares / "heldout")
    assert [text for _, text in predictions] == from_checkpoint
    assert len(set(from_checkpoint)) > 1, "a model that says one thing of every image proves nothing"


@pytest.mark.distributed
def test_a_tokenizer_that_does_not_fit_the_checkpoint_is_refused(squares: Path, tmp_path: Path) -> None:
    from git_scale.data.train_tokenizer import train_sentencepiece
    from git_scale.errors import CheckpointError

    run_distributed(train_and_evaluate, 1, squares, tmp_path / "run", 0)
    train_sentencepiece(["a b c d e f g"] * 9, tmp_path / "other.model", 12)
    with pytest.raises(CheckpointError, match=r"12 pieces, but the word table .* 34 rows"):
        git_scale.load(tmp_path / "run", device="cpu", tokenizer=tmp_path / "other.model")


def live_weights_and_files(
    topology: Topology, device: torch.device, squares: Path, run_dir: Path, stage: int
) -> float:
    """The largest difference between the weights in memory and those read from the checkpoint."""
    import deepspeed

    from git_scale.training.build import build_trainer

    run = tiny_run(squares, run_dir, train={"micro_batch": 4})
    trainer = build_trainer(run, {"zero_optimization": {"stage": stage}}, topology, device)
    trainer.train_step()
    trainer.step += 1
    trainer.save()
    saved = load_weights(run_dir / "checkpoints" / "step_00000001")
    named: dict[str, Any] = dict(trainer.engine.model.module.named_parameters(remove_duplicate=False))
    with deepspeed.zero.GatheredParameters(list(named.values())):
        assert named.keys() == saved.keys()
        return max(float((named[name].detach() - saved[name]).abs().max()) for name in named)


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_weights_read_from_the_files_are_those_in_memory(squares: Path, tmp_path: Path, stage: int) -> None:
    assert run_distributed(live_weights_and_files, 2, squares, tmp_path / "run", stage) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("bad", "max_bad_share", "is_refused"), [(3, 0.01, False), (4, 0.01, True), (7, 1.0, False)]
)
def test_an_evaluation_of_mostly_unusable_samples_is_no_score(
    squares: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    bad: int,
    max_bad_share: float,
    is_refused: bool,
) -> None:
    run = tiny_run(squares, tmp_path / "run", data={"max_bad_share": max_bad_share})
    tokenizer = load_tokenizer(run.data.tokenizer)
    task = build_task(run.data.task, run, tokenizer)
    evaluator = Evaluator(run, open_store(squares / "heldout"), task, Topology())
    problems = [f"shard.tar:{number}: the image (9 bytes) cannot be decoded" for number in range(bad)]
    said = rf"{bad} of 7 .*held-out samples cannot be used"
    if is_refused:
        with pytest.raises(DataError, match=rf"(?s){said}.*Mend data\.heldout, or set data\.max_bad_share=1"):
            evaluator._check_problems(problems)
    else:
        evaluator._check_problems(problems)
        assert re.search(said, caplog.text)
