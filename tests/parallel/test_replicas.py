"""What ranks hold alike is compared before a checkpoint; the sums notice what sums of bits would not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from git_scale.parallel import replicas
from git_scale.parallel.replicas import checksum
from git_scale.parallel.topology import Topology
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import tiny_run
from git_scale.testing.towers import RESNET
from git_scale.training.build import build_trainer

WEIGHT = "decoder.layers.0.fc1.weight"
NORM = "decoder.layers.0.ffn_norm.weight"
FROZEN = "decoder.embedding.positions.weight"
BUFFER = "encoder.backbone.bn1.running_mean"


def parameter(trainer: Any, name: str) -> Tensor:
    return trainer.engine.model.module.get_parameter(name).data


def moment(trainer: Any) -> Tensor:
    masters = {master.piece.name: master for master in trainer.engine._rank_state._masters()}
    return trainer.engine._rank_state._moment(masters[WEIGHT], "exp_avg_sq")


Change = Callable[[Any], None]


def flip_last_bit(tensor: Tensor) -> None:
    whole = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
    tensor.view(-1)[-1:].view(whole).bitwise_xor_(1)


def swap(tensor: Tensor) -> None:
    flat = tensor.view(-1)
    flat[:2] = flat[[1, 0]]


# where, ZeRO stage, precision, name in the message, the change
CASES: dict[str, tuple[int, str, str, Change]] = {
    "weight": (0, "fp32", WEIGHT, lambda trainer: flip_last_bit(parameter(trainer, WEIGHT))),
    "swapped": (0, "fp32", WEIGHT, lambda trainer: swap(parameter(trainer, WEIGHT))),
    "moment": (0, "fp32", f"exp_avg_sq of {WEIGHT}", lambda trainer: flip_last_bit(moment(trainer))),
    "frozen": (0, "fp32", FROZEN, lambda trainer: flip_last_bit(parameter(trainer, FROZEN))),
    "forward-weight-1": (1, "fp32", WEIGHT, lambda trainer: flip_last_bit(parameter(trainer, WEIGHT))),
    "forward-weight-2": (2, "fp32", WEIGHT, lambda trainer: swap(parameter(trainer, WEIGHT))),
    "frozen-2": (2, "fp32", FROZEN, lambda trainer: flip_last_bit(parameter(trainer, FROZEN))),
    "persistent-3": (3, "fp32", NORM, lambda trainer: flip_last_bit(parameter(trainer, NORM))),
    "nothing": (0, "fp32", "", lambda trainer: None),
    "nothing-3": (3, "fp32", "", lambda trainer: None),
}
IN_BF16: dict[str, tuple[int, str, str, Change]] = {
    "bf16-weight-1": (1, "bf16", WEIGHT, lambda trainer: flip_last_bit(parameter(trainer, WEIGHT))),
    "bf16-weight-2": (2, "bf16", WEIGHT, lambda trainer: swap(parameter(trainer, WEIGHT))),
    "bf16-persistent-3": (3, "bf16", NORM, lambda trainer: flip_last_bit(parameter(trainer, NORM))),
    "bf16-nothing": (1, "bf16", "", lambda trainer: None),
}


def save_after_changes(
    topology: Topology, device: torch.device, squares: Path, run_dir: Path
) -> dict[str, str]:
    """What saving says after a change on the second rank alone, by case."""
    answers = {}
    for case, (stage, precision, _, change) in (CASES | IN_BF16).items():
        run = tiny_run(
            squares,
            run_dir / case,
            train={"precision": precision, "freeze": [FROZEN]},
            **({"model": {"encoder": RESNET}} if precision == "fp32" else {}),
        )
        trainer = build_trainer(run, {"zero_optimization": {"stage": stage}}, topology, device)
        trainer.train_step()
        if topology.dp_rank == 1:
            change(trainer)
        try:
            answers[case] = f"saved: {trainer.save()}"
        except RuntimeError as error:
            answers[case] = str(error)
    return answers


@pytest.mark.distributed
def test_replicas_that_differ_are_found_before_a_checkpoint_is_written(squares: Path, tmp_path: Path) -> None:
    for answers in run_distributed(save_after_changes, 2, squares, tmp_path):
        for case, (*_, name, _) in (CASES | IN_BF16).items():
            if name:
                assert (
                    f"the data-parallel ranks hold different values of {name} and 0 more" in answers[case]
                ), case
                assert not list((tmp_path / case).glob("checkpoints/step_*"))
            else:
                assert answers[case] == "saved: True", case


def buffers_that_differ(topology: Topology, device: torch.device, squares: Path, run_dir: Path) -> str:
    run = tiny_run(squares, run_dir, model={"encoder": RESNET})
    trainer = build_trainer(run, {}, topology, device)
    trainer.engine.average_statistics()
    trainer.engine.check_replicas()
    if topology.dp_rank == 1:
        trainer.engine.model.module.encoder.backbone.bn1.running_mean[0] += 1
    with pytest.raises(RuntimeError) as caught:
        trainer.engine.check_replicas()
    return str(caught.value)


@pytest.mark.distributed
def test_buffers_are_compared_too(squares: Path, tmp_path: Path) -> None:
    for message in run_distributed(buffers_that_differ, 2, squares, tmp_path / "run"):
        assert f"different values of {BUFFER} and 0 more" in message


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool], ids=str)
def test_a_checksum_knows_values_and_their_places(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    numbers = torch.randn(1000).gt(0) if dtype == torch.bool else (100 * torch.randn(1000)).to(dtype)
    right = checksum(numbers)
    assert right.dtype == torch.int64 and checksum(numbers.clone().view(10, 100)) == right
    for first, second in [(0, 1), (3, 999), (128, 256)]:
        if numbers[first] != numbers[second]:
            swapped = numbers.clone()
            swapped[[first, second]] = numbers[[second, first]]
            assert checksum(swapped) != right
    for place in (0, 500, 999):
        other = numbers.clone()
        other[place] = ~other[place] if dtype == torch.bool else other[place] + 64
        assert checksum(other) != right


def test_a_checksum_is_the_same_in_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.randn(1000)
    right = checksum(numbers)
    for chunk in (1, 7, 1000):
        monkeypatch.setitem(replicas.CHUNK, "cpu", chunk)
        assert checksum(numbers) == right
    assert checksum(torch.empty(0)) == 0


def test_sums_of_bits_would_not_notice_an_exchange() -> None:
    """The negative control of the weights in a checksum."""
    numbers = torch.randn(1000)
    exchanged = numbers.flip(0)
    assert numbers.view(torch.int32).sum() == exchanged.view(torch.int32).sum()
    assert checksum(numbers) != checksum(exchanged)
