"""Objectives of a plugin that are none, or give something else than they should, are refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from git_scale.data.batch import Batch
from git_scale.errors import ConfigError
from git_scale.objectives import OBJECTIVES
from git_scale.objectives.objective import Objective, VocabularyComm
from git_scale.objectives.training_loss import TrainingLoss, loss_alone
from git_scale.testing.tiny import tiny_run


class Answers(Objective):
    """Counts and sums what a test says."""

    counts: ClassVar[Any] = 3
    sums: ClassVar[Any] = None
    prepared: ClassVar[Any] = None

    def count(self, batch: Batch) -> int:
        return self.counts  # type: ignore[no-any-return]

    def sum(self, logits: Tensor, batch: Batch, comm: VocabularyComm) -> Tensor:
        return logits.sum() if self.sums is None else self.sums  # type: ignore[no-any-return]

    def prepare(self, runner: Any, batches: list[Batch]) -> list[Batch]:
        return batches if self.prepared is None else self.prepared  # type: ignore[no-any-return]


class WithoutSum(Objective):
    def count(self, batch: Batch) -> int:
        return 1


@pytest.fixture
def run(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(OBJECTIVES, "_added", {"answers": Answers})
    return tiny_run(squares, tmp_path / "run", train={"objectives": {"answers": 1.0}})


def a_batch() -> Batch:
    rows = torch.arange(4)
    images, tokens = torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 1, 5, dtype=torch.long)
    return Batch(images, tokens, rows, rows, keys=["k"], problems=[])


def model(images: Tensor, tokens: Tensor, rows: Tensor, *_: None) -> Tensor:
    return torch.ones(len(rows), 7, requires_grad=True)


@pytest.mark.parametrize("count", ["x", -3, 2.5, True, None])
def test_a_count_is_a_whole_number(run: Any, monkeypatch: pytest.MonkeyPatch, count: Any) -> None:
    monkeypatch.setattr(Answers, "counts", count)
    with pytest.raises(ConfigError, match=f"count of answers gave {count!r}: a whole number"):
        TrainingLoss(run).counts([a_batch()])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.ones(4), r"gave a tensor of \[4\]: a tensor without dimensions"),
        (1.5, "gave 1.5: a tensor without dimensions"),
        (torch.tensor(1.0), r"gave a tensor of \[\]: a tensor with a gradient, made of the logits"),
    ],
)
def test_a_sum_is_a_scalar_with_a_gradient(
    run: Any, monkeypatch: pytest.MonkeyPatch, value: Any, said: str
) -> None:
    monkeypatch.setattr(Answers, "sums", value)
    with pytest.raises(ConfigError, match=f"sum of answers {said}"):
        loss_alone(run, model, a_batch(), torch.float32)


def test_every_micro_batch_comes_back_prepared(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answers, "prepared", [])
    with pytest.raises(ConfigError, match=r"prepare of answers gave \[\]: the 2 micro-batches"):
        TrainingLoss(run).prepare(None, [a_batch(), a_batch()])  # type: ignore[arg-type]


def test_a_plan_runs_what_counts_only_prepared_batches(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answers, "counts", 0)
    assert float(loss_alone(run, model, a_batch(), torch.float32)) == 4 * 7


class Rewarded(Answers):
    def sum(self, logits: Tensor, batch: Batch, comm: VocabularyComm) -> Tensor:
        return logits.sum() * batch.extras["reward"].mean()


class RewardedInPlans(Rewarded):
    def stand_in(self, batch: Batch) -> Batch:
        return replace(batch, extras={"reward": torch.full((1,), 2.0)})


def test_a_plan_takes_a_stand_in_for_what_is_prepared(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OBJECTIVES, "_added", {"answers": RewardedInPlans})
    loss = loss_alone(run, model, a_batch(), torch.float32)
    assert loss.item() == pytest.approx(2 * 4 * 7 / 3)
    monkeypatch.setattr(OBJECTIVES, "_added", {"answers": Rewarded})
    with pytest.raises(KeyError, match="reward") as caught:
        loss_alone(run, model, a_batch(), torch.float32)
    assert "answers" in caught.value.__notes__[0] and "stand_in" in caught.value.__notes__[1]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (WithoutSum, r"train\.objectives=mine: .*WithoutSum does not say sum"),
        (print, r"train\.objectives=mine: .* is no subclass of git_scale\.objectives\.objective\.Objective"),
    ],
)
def test_what_is_no_objective_is_said_where_it_is_named(
    monkeypatch: pytest.MonkeyPatch, entry: Any, said: str
) -> None:
    monkeypatch.setattr(OBJECTIVES, "_added", {"mine": entry})
    with pytest.raises(ConfigError, match=said):
        OBJECTIVES["mine"]
