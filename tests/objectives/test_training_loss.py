"""A run's loss: objectives by name and weight, whose counts and sums make it the same on any number of ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from git_scale.config import RunConfig, TrainConfig
from git_scale.data.batch import Batch
from git_scale.errors import ConfigError
from git_scale.models.build import build_model
from git_scale.models.interface import Runner
from git_scale.objectives import OBJECTIVES
from git_scale.objectives.objective import Objective, VocabularyComm, inputs_of
from git_scale.objectives.training_loss import TrainingLoss, check_objectives, loss_alone
from git_scale.parallel.topology import Topology
from git_scale.recipes import load_run
from git_scale.testing.curves import ZERO, Curve, assert_same_curve, curve_of
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import tiny_run
from git_scale.training.build import build_trainer
from git_scale.training.guards import MAX_SKIPPED_IN_A_ROW

STEPS = 3


class PerSample(Objective):
    """The square of the first logit of each sample's first row: a mean over samples, not over tokens."""

    def count(self, batch: Batch) -> int:
        return len(batch.keys)

    def sum(self, logits: Tensor, batch: Batch, comm: VocabularyComm) -> Tensor:
        samples = batch.rows // batch.tokens[0].numel()
        first = torch.cat([samples.new_ones(1), samples.diff()]).bool()
        mine = logits[:, 0].float().where(first, 0.0) if comm.tp_rank == 0 else logits[:, 0] * 0.0
        return comm.sum_over_tp(mine.square().sum())


class Compared(PerSample):
    accumulates = False


class Asking(PerSample):
    """Looks at its samples through the model before the step, and learns from what it saw."""

    def prepare(self, runner: Runner, batches: list[Batch]) -> list[Batch]:
        seen = []
        with torch.no_grad():
            for batch in batches:
                inputs = inputs_of(batch.to(runner.device), runner.dtype)
                seen.append(replace(batch, extras={"asked": runner.model(*inputs).float().mean().view(1)}))
        return seen

    def sum(self, logits: Tensor, batch: Batch, comm: VocabularyComm) -> Tensor:
        return super().sum(logits, batch, comm) * (1 + batch.extras["asked"].squeeze())


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OBJECTIVES, "_added", {})
    add_objectives()


def add_objectives() -> None:
    for objective in (PerSample, Compared, Asking):
        OBJECTIVES.add(objective.__name__.lower(), objective)


def test_a_bare_name_is_short_for_one_of_weight_1() -> None:
    assert load_run("demo").train.objectives == {"lm": 1.0}
    assert load_run("demo", ["train.objective=compared"]).train.objectives == {"compared": 1.0}
    both = load_run("demo", ["train.objectives={lm: 0.5, persample: 2}"])
    assert both.train.objectives == {"lm": 0.5, "persample": 2.0}
    assert load_run("demo", ["train.objectives.persample=2"]).train.objectives == {"persample": 2.0}
    assert RunConfig.model_validate(both.model_dump(mode="json")) == both


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "train.objective=ln",
            r"train.objectives='ln': there is none of that name; there are lm, masked_lm, pers",
        ),
        ("train.objective=askin", r"did you mean asking\?"),
        ("train.objectives={lm: 0}", r"train.objectives.lm=0: input should be greater than 0"),
        ("train.objectives={lm: .inf}", r"train.objectives.lm=inf: "),
        (
            "train.objectives={}",
            r"train.objectives=\{\} leaves nothing to learn: name one of lm, masked_lm, pers",
        ),
    ],
)
def test_wrong_objectives_are_refused_by_name(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_run("demo", [override])


def test_short_and_long_together_are_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"is short for objectives, which is given too: set objectives=\{lm: 1.0\} in their place",
    ):
        TrainConfig.model_validate({"objective": "lm", "objectives": {"lm": 1.0}})


def test_micro_batches_that_are_compared_with_each_other_are_not_accumulated(
    squares: Path, tmp_path: Path
) -> None:
    run = tiny_run(squares, tmp_path, train={"objectives": {"lm": 1.0, "compared": 1.0}})
    check_objectives(run, dp=2)
    with pytest.raises(ConfigError, match=r"compared .* is 2 micro-batches of 4 .* set train.micro_batch=8"):
        check_objectives(run, dp=1)
    check_objectives(tiny_run(squares, tmp_path), dp=1)


def test_what_needs_images_is_not_mixed_with_text_alone(squares: Path, tmp_path: Path) -> None:
    sources = [{"path": "photos", "task": "caption"}, {"path": "books", "task": "text_only"}]
    run = tiny_run(squares, tmp_path, data={"sources": sources, "train": None})
    check_objectives(run, dp=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PerSample, "needs_images", True)
        both = run.train.model_copy(update={"objectives": {"lm": 1.0, "persample": 1.0}})
        with pytest.raises(
            ConfigError, match=r"persample needs an image of each .* data.sources\[1\]=books is text"
        ):
            check_objectives(run.model_copy(update={"train": both}), dp=2)


def test_the_loss_is_the_weighted_sum_of_means(squares: Path, tmp_path: Path) -> None:
    weights = {"lm": 0.5, "persample": 2.0}
    run = tiny_run(squares, tmp_path, train={"objectives": weights})
    torch.manual_seed(0)
    model = build_model(run.model).eval()
    tokens = torch.randint(5, 34, (3, 1, 6))
    rows = torch.tensor([0, 1, 2, 6, 12, 13])
    pixels = torch.randint(256, (3, 1, 3, 32, 32), dtype=torch.uint8)
    batch = Batch(pixels, tokens, rows, tokens.flatten()[rows + 1], ["a", "b", "c"], [])
    logits = model(*inputs_of(batch, torch.float32))
    words = torch.nn.functional.log_softmax(logits, -1)
    of_label = words[torch.arange(6), batch.labels]
    others = words.sum(-1) - of_label
    entropy = -0.9 * torch.tensor(0.9).log() - 0.1 * torch.tensor(0.1 / 33).log()
    language_model = (-0.9 * of_label - 0.1 / 33 * others - entropy).mean()
    per_sample = logits[[0, 3, 4], 0].square().mean()
    expected = 0.5 * language_model + 2 * per_sample
    torch.testing.assert_close(loss_alone(run, model, batch, torch.float32), expected, rtol=1e-5, atol=1e-6)


def test_a_term_with_nothing_to_learn_is_left_out(squares: Path, tmp_path: Path) -> None:
    run = tiny_run(squares, tmp_path, train={"objectives": {"lm": 1.0, "persample": 2.0}})
    none = torch.zeros(0, dtype=torch.long)
    batch = Batch(
        torch.zeros(1, 1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, 1, 4).long(), none, none, ["a"], []
    )
    loss = TrainingLoss(run)
    assert loss.counts([batch, batch]) == [0, 2]


def train(
    topology: Topology, device: torch.device, run: RunConfig, ds_config: dict[str, Any]
) -> tuple[Any, Any]:
    """The curve, and the parts of the last loss."""
    if "persample" not in OBJECTIVES:
        add_objectives()
    trainer = build_trainer(run, ds_config, topology, device)
    curve = curve_of(trainer, STEPS)
    return curve, trainer.meters.report(STEPS, learning_rates={}, skipped_steps=0, data_skipped=0)


@pytest.mark.distributed
def test_several_objectives_learn_alike_on_any_ranks(squares: Path, tmp_path: Path) -> None:
    weights = {"lm": 1.0, "persample": 0.3}
    alone = tiny_run(squares, tmp_path / "alone", train={"objectives": weights, "micro_batch": 8})
    ((serial, logged),) = run_distributed(train, 1, alone, ZERO[0])
    parts = [logged[f"train/loss_{name}"] for name in weights]
    assert min(parts) > 0
    assert logged["train/loss"] == pytest.approx(sum(parts), rel=1e-6)
    shared = tiny_run(squares, tmp_path / "shared", train={"objectives": weights, "micro_batch": 2})
    split = tiny_run(squares, tmp_path / "split", train={"objectives": weights}, parallel={"tp": 2})
    for run, stage in ((shared, 3), (split, 1)):
        for curve, _ in run_distributed(train, 2, run, ZERO[stage], tp=run.parallel.tp):
            assert_same_curve(curve, serial)


@pytest.mark.distributed
def test_an_objective_asks_the_model_before_the_step(squares: Path, tmp_path: Path) -> None:
    """What it is told is the same under ZeRO-3 with tensor parallelism as in one process."""
    train_on = {"objectives": {"asking": 1.0}, "micro_batch": 8}
    alone = tiny_run(squares, tmp_path / "alone", train=train_on)
    ((serial, _),) = run_distributed(train, 1, alone, ZERO[0])
    plain = tiny_run(squares, tmp_path / "plain", train=train_on | {"objectives": {"persample": 1.0}})
    ((unasked, _),) = run_distributed(train, 1, plain, ZERO[0])
    assert unasked != serial
    split = tiny_run(squares, tmp_path / "split", train=train_on, parallel={"tp": 2, "decoder": False})
    for curve, _ in run_distributed(train, 2, split, ZERO[3], tp=2):
        assert_same_curve(curve, serial)


class Everyone(Objective):
    """Learns from samples, whether they have texts or not."""

    def count(self, batch: Batch) -> int:
        return len(batch.keys)

    def sum(self, logits: Tensor, batch: Batch, comm: VocabularyComm) -> Tensor:
        return logits.float().sum() * 0 + len(batch.keys)


def without_rows(topology: Topology, device: torch.device, run: RunConfig) -> tuple[bool, float]:
    """Of a run whose samples have no target: whether it had nothing to learn from, and its last loss."""
    OBJECTIVES.add("everyone", Everyone)
    trainer = build_trainer(run, ZERO[0], topology, device)
    batches = trainer._batches
    trainer._batches = (replace(batch, rows=batch.rows[:0], labels=batch.labels[:0]) for batch in batches)
    curve = curve_of(trainer, MAX_SKIPPED_IN_A_ROW)
    return trainer.guards.nothing_is_learned, curve[-1][0]


@pytest.mark.distributed
@pytest.mark.parametrize(("objective", "nothing"), [("everyone", False), ("lm", True)])
def test_an_objective_without_targets_has_something_to_learn(
    squares: Path, tmp_path: Path, objective: str, nothing: bool
) -> None:
    train = {"objectives": {objective: 1.0}, "steps": 20}
    ((is_nothing, loss),) = run_distributed(without_rows, 1, tiny_run(squares, tmp_path / "run", train=train))
    assert is_nothing is nothing
    assert nothing or loss == 1.0


def every_second(batch: Batch) -> Batch:
    return replace(batch, rows=batch.rows[::2], labels=batch.labels[::2])


class CrossEntropy(Objective):
    def count(self, batch: Batch) -> int:
        return batch.num_targets

    def sum(self, logits: Tensor, batch: Batch, comm: VocabularyComm) -> Tensor:
        return F.cross_entropy(logits.float(), batch.labels, reduction="sum")


class OfEverySecond(CrossEntropy):
    def prepare(self, runner: Runner, batches: list[Batch]) -> list[Batch]:
        return list(map(every_second, batches))


def learn(topology: Topology, device: torch.device, run: RunConfig, halves: bool) -> Curve:
    OBJECTIVES.add("plain", CrossEntropy)
    OBJECTIVES.add("half", OfEverySecond)
    trainer = build_trainer(run, ZERO[1], topology, device)
    if halves:
        trainer._batches = map(every_second, trainer._batches)
    return curve_of(trainer, 3)


@pytest.mark.distributed
def test_what_is_prepared_is_what_is_counted(squares: Path, tmp_path: Path) -> None:
    """A mean over the targets that `prepare` leaves, not over those that the data had."""
    half, plain, whole = (
        tiny_run(squares, tmp_path / name, train={"objectives": {objective: 1.0}, "micro_batch": 2})
        for name, objective in (("half", "half"), ("plain", "plain"), ("whole", "plain"))
    )
    prepared = run_distributed(learn, 2, half, False)[0]
    assert prepared == run_distributed(learn, 2, plain, True)[0]
    assert prepared != run_distributed(learn, 2, whole, False)[0]
