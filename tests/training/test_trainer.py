"""The loop: what is written, evaluated, skipped and stopped."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from git_scale.config import CheckpointConfig, RunConfig
from git_scale.errors import CheckpointError, ConfigError
from git_scale.parallel.topology import Topology
from git_scale.stop import StopRequest
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import tiny_run, write_squares
from git_scale.testing.towers import RESNET


def build(
    topology: Topology, device: torch.device, squares: Path, run_dir: Path, stage: int, **sections: Any
) -> Any:
    from git_scale.training.build import build_trainer

    run = tiny_run(squares, run_dir, **sections)
    return build_trainer(run, {"zero_optimization": {"stage": stage}}, topology, device)


def fit(topology: Topology, device: torch.device, squares: Path, run_dir: Path, sections: Any) -> int:
    trainer = build(topology, device, squares, run_dir, 3, **sections)
    outcome = trainer.fit(StopRequest())
    trainer.writer.close()
    return int(outcome)


@pytest.mark.distributed
def test_a_run_writes_what_it_promises(squares: Path, tmp_path: Path) -> None:
    sections = {"eval": {"every": 5}, "checkpoint": {"every": 5}, "log": {"every": 2}}
    assert run_distributed(fit, 2, squares, tmp_path / "run", sections) == [0, 0]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "train/loss" in line]
    assert steps == [1, 2, 4, 6, 8, 10]
    for name in ("train/lr_encoder", "train/grad_norm", "speed/images_per_s", "speed/mfu", "progress/eta_s"):
        assert all(math.isfinite(line[name]) for line in lines if "train/loss" in line), name
    assert [line["eval/images"] for line in lines if "eval/images" in line] == [7, 7]
    assert {path.name for path in (tmp_path / "run" / "pictures").iterdir()} == {
        "step_00000005.png",
        "step_00000010.png",
    }
    assert (tmp_path / "run" / "config.yaml").is_file()
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def losses_with_nan(
    topology: Topology, device: torch.device, squares: Path, run_dir: Path, stage: int
) -> list[tuple[bool, bool]]:
    """(skipped, weights changed) of steps 0..3; step 2 has a NaN on the last rank."""
    trainer = build(topology, device, squares, run_dir, stage)
    plain = trainer.micro_losses
    outcome = []
    for step in range(4):
        poisoned = step == 2 and topology.dp_rank == topology.dp - 1
        factor = math.nan if poisoned else 1.0
        trainer.micro_losses = lambda *given, f=factor: {
            name: f * loss for name, loss in plain(*given).items()
        }
        before = _weights(trainer)
        result = trainer.train_step()
        trainer.step += 1
        after = _weights(trainer)
        outcome.append((result.skipped, not torch.equal(before, after)))
    assert trainer.skipped_steps == 1
    return outcome


def _weights(trainer: Any) -> torch.Tensor:
    import deepspeed

    parameters = list(trainer.engine.model.module.parameters())
    with deepspeed.zero.GatheredParameters(parameters):
        return torch.cat([parameter.detach().float().flatten().clone() for parameter in parameters])


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all(
    squares: Path, tmp_path: Path, stage: int
) -> None:
    for outcome in run_distributed(losses_with_nan, 2, squares, tmp_path / "run", stage):
        assert outcome == [(False, True), (False, True), (True, False), (False, True)]


def always_nan(topology: Topology, device: torch.device, squares: Path, run_dir: Path) -> str:
    trainer = build(topology, device, squares, run_dir, 1, train={"steps": 50})
    plain = trainer.micro_losses
    trainer.micro_losses = lambda *given: {name: math.nan * loss for name, loss in plain(*given).items()}
    try:
        trainer.fit(StopRequest())
    except RuntimeError as error:
        return str(error)
    return "went on"


@pytest.mark.distributed
def test_a_run_that_skips_every_step_ends(squares: Path, tmp_path: Path) -> None:
    (message,) = run_distributed(always_nan, 1, squares, tmp_path / "run")
    assert "10 steps in a row" in message and "lower the learning rates" in message


@pytest.mark.parametrize("metrics", [{}, {"eval/cider": math.nan}])
def test_an_evaluation_without_a_value_marks_no_best_checkpoint_and_says_so(
    metrics: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    from git_scale.training.trainer import Trainer

    run = RunConfig().model_copy(update={"checkpoint": CheckpointConfig(best="cider")})
    trainer: Any = SimpleNamespace(run=run, step=20)  # it has nothing that it could mark one with
    Trainer.keep_best(trainer, metrics)
    assert "step 20: checkpoint.best=cider has no value here, so no checkpoint is marked" in caplog.text


def first_update(
    topology: Topology, device: torch.device, squares: Path, run_dir: Path, stage: int, precision: str
) -> dict[str, float]:
    """The largest change per tower of what begins at 0, after one step: AdamW's first moves by the rate itself."""
    import deepspeed

    optimizer = {"warmup_steps": 0, "weight_decay": 0.0, "encoder_lr": 1e-3, "decoder_lr": 5e-3}
    train = {"precision": precision}
    trainer = build(topology, device, squares, run_dir, stage, optimizer=optimizer, train=train)
    named = dict(trainer.engine.model.module.named_parameters())

    def snapshot() -> dict[str, torch.Tensor]:
        with deepspeed.zero.GatheredParameters(list(named.values())):
            return {name: parameter.detach().clone() for name, parameter in named.items()}

    before = snapshot()
    trainer.train_step()
    after = snapshot()
    moved = {"encoder": 0.0, "decoder": 0.0}
    for name in named:
        tower = "encoder" if name.startswith("encoder.") else "decoder"
        from_zero = after[name][before[name] == 0]  # where bf16 is as fine as the rate asks for
        moved[tower] = max([moved[tower], *from_zero.abs().flatten().tolist()])
    return moved


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("stage", "precision", "tolerance"),
    [*((stage, "fp32", 1e-3) for stage in range(4)), (0, "bf16", 5e-3)],
)
def test_each_group_really_moves_at_its_own_rate(
    squares: Path, tmp_path: Path, stage: int, precision: str, tolerance: float
) -> None:
    moved = run_distributed(first_update, 2, squares, tmp_path / "run", stage, precision)[0]
    assert moved == pytest.approx({"encoder": 1e-3, "decoder": 5e-3}, rel=tolerance)


def rates_ignored(topology: Topology, device: torch.device, squares: Path, run_dir: Path) -> str:
    trainer = build(topology, device, squares, run_dir, 1)
    plain = trainer.engine.set_learning_rates

    def one_rate_for_all(factor: float) -> None:
        plain(factor)
        for group in trainer.engine._engine.basic_optimizer.param_groups:
            group["lr"] = 1e-5

    trainer.engine.set_learning_rates = one_rate_for_all
    try:
        trainer.train_step()
    except RuntimeError as error:
        return str(error)
    return "unnoticed"


@pytest.mark.distributed
def test_ignored_learning_rates_are_noticed_at_the_first_step(squares: Path, tmp_path: Path) -> None:
    (message,) = run_distributed(rates_ignored, 1, squares, tmp_path / "run")
    assert "learns at 1e-05, the recipe asks for" in message


def stopped(topology: Topology, device: torch.device, squares: Path, run_dir: Path) -> tuple[int, int]:
    trainer = build(topology, device, squares, run_dir, 3, train={"steps": 1000})
    plain_step = trainer.train_step

    def step_with_signal(stop: bool = False) -> Any:
        if trainer.step == 3 and topology.dp_rank == 1:  # one rank alone gets the signal
            signal.raise_signal(signal.SIGUSR1)
        return plain_step(stop)

    trainer.train_step = step_with_signal
    with StopRequest() as stop_request:
        return int(trainer.fit(stop_request)), trainer.step


def stopped_on_a_full_disk(topology: Topology, device: torch.device, squares: Path, run_dir: Path) -> str:
    """What a run says that is stopped while nothing can be written."""
    trainer = build(topology, device, squares, run_dir, 3, train={"steps": 1000})
    trainer.checkpoints.save = lambda progress: False
    with StopRequest() as stop_request:
        signal.raise_signal(signal.SIGUSR1)
        try:
            return f"exit code {int(trainer.fit(stop_request))}"
        except CheckpointError as error:
            return str(error)


@pytest.mark.distributed
def test_a_stop_without_a_checkpoint_does_not_ask_to_be_started_again(squares: Path, tmp_path: Path) -> None:
    answers = run_distributed(stopped_on_a_full_disk, 2, squares, tmp_path / "run")
    assert answers == ["step 1 is the last of this start, and could not be saved"] * 2


@pytest.mark.distributed
def test_a_signal_to_one_rank_stops_all_at_the_same_step_with_a_checkpoint(
    squares: Path, tmp_path: Path
) -> None:
    answers = run_distributed(stopped, 2, squares, tmp_path / "run")
    assert answers[0] == answers[1]
    code, step = answers[0]
    assert code == 75 and step in (4, 5)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step_{step:08d}"]


def statistics(topology: Topology, device: torch.device, squares: Path, run_dir: Path) -> Any:
    """Running means of a batch norm, before and after they are averaged."""
    trainer = build(topology, device, squares, run_dir, 1, model={"encoder": RESNET})
    trainer.train_step()
    norm = trainer.engine.model.module.encoder.backbone.bn1
    before = norm.running_mean.tolist()
    trainer.engine.average_statistics()
    return before, norm.running_mean.tolist()


@pytest.mark.distributed
def test_batch_statistics_are_averaged_over_the_ranks(squares: Path, tmp_path: Path) -> None:
    (first, mean), (second, mean_there) = run_distributed(statistics, 2, squares, tmp_path / "run")
    assert first != second
    assert mean == mean_there
    assert mean == pytest.approx([(a + b) / 2 for a, b in zip(first, second, strict=True)])


def count_bad(topology: Topology, device: torch.device, squares: Path, run_dir: Path, data: Path) -> Any:
    trainer = build(topology, device, squares, run_dir, 3, data={"train": str(data)})
    results = [trainer.train_step() for _ in range(2)]
    return [result.loss for result in results], trainer.bad_samples


@pytest.mark.distributed
def test_unusable_samples_are_counted_and_the_run_goes_on(squares: Path, tmp_path: Path) -> None:
    write_squares(tmp_path / "data", 16)
    shard = tmp_path / "data" / "squares-000000.tar"
    content = shard.read_bytes()
    first_image = content.index(b"\x89PNG")
    shard.write_bytes(content[:first_image] + b"\x00" * 8 + content[first_image + 8 :])
    for losses, bad in run_distributed(count_bad, 2, squares, tmp_path / "run", tmp_path / "data"):
        assert all(0 < loss < 10 for loss in losses)
        assert bad == 1


def wrong_setups(topology: Topology, device: torch.device, squares: Path, folder: Path) -> list[str]:
    messages = []
    foreign = folder / "foreign"
    foreign.mkdir(exist_ok=True)
    (foreign / "thesis.tex").write_text("precious")
    for sections in (
        {"model": {"vocab_size": 99}},
        {"train": {"micro_batch": 3}},
        {"data": {"train": str(folder / "nowhere")}},
        {"data": {"tokenizer": str(folder / "nothing.model")}},
        {"model": {"encoder": {"name": "resnet10t", "image_size": 32}}, "train": {"precision": "bf16"}},
        {"train": {"compile": True}},
    ):
        messages.append(_message_of(topology, device, squares, folder / "run", **sections))
    messages.append(_message_of(topology, device, squares, foreign))
    return messages


def _message_of(
    topology: Topology, device: torch.device, squares: Path, run_dir: Path, **sections: Any
) -> str:
    from git_scale.errors import UserError

    try:
        build(topology, device, squares, run_dir, 3, **sections)
    except UserError as error:
        return str(error)
    return "accepted"


@pytest.mark.distributed
def test_what_is_wrong_is_said_before_the_first_step_on_all_ranks(squares: Path, tmp_path: Path) -> None:
    for messages in run_distributed(wrong_setups, 2, squares, tmp_path):
        vocabulary, batch, data, tokenizer, norms, compiled, folder = messages
        assert "model.vocab_size=99" in vocabulary and "set model.vocab_size=34" in vocabulary
        assert "train.global_batch=8 is no multiple of train.micro_batch=3 x 2 ranks" in batch
        assert "nowhere" in data
        assert "nothing.model" in tokenizer
        assert "resnet10t" in norms and "set train.precision=fp32" in norms
        assert "ZeRO stage 3" in compiled and "set train.compile=false" in compiled
        assert "not the folder of a run" in folder
    assert (tmp_path / "foreign" / "thesis.tex").read_text() == "precious"


def test_errors_of_config_name_every_problem() -> None:
    error = ConfigError(["a=1: too small", "b=2: too large"])
    assert "2 problems" in str(error) and "a=1" in str(error) and "b=2" in str(error)
