"""Tensor parallelism changes nothing: losses and gradient norms of the serial run, for each kind of encoder."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from git_scale.config import RunConfig
from git_scale.parallel.topology import Topology
from git_scale.testing.curves import ZERO, Curve, assert_same_curve, curve_of, train_curve, train_curves
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import tiny_run
from git_scale.testing.towers import ENCODERS, HEADS

STEPS = 3


def recipe(data: Path, run_dir: Path, encoder: str, tp: int, dp: int, **train: Any) -> Any:
    run = tiny_run(data, run_dir, train={"micro_batch": 8 // dp, **train}, parallel={"tp": tp})
    tree = run.model_dump(mode="json")
    tree["model"]["encoder"] |= ENCODERS[encoder]
    tree["model"]["decoder"] |= {"heads": HEADS}
    return type(run).model_validate(tree)


@pytest.fixture(scope="module", params=list(ENCODERS))
def serial(request: Any, squares: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Curve]:
    run = recipe(squares, tmp_path_factory.mktemp("serial") / "run", request.param, tp=1, dp=1)
    (curve,) = run_distributed(train_curve, 1, run, ZERO[0], STEPS)
    assert max(norm for _, norm in curve) > run.optimizer.clip_norm, "clipping must be active"
    assert curve[-1][0] < curve[0][0]
    return request.param, curve


# (dp, tp) -> ZeRO stages: one rank per copy leaves stages 1 and 2 nothing to share, and tests/training/test_parity.py
# has all stages without tensor parallelism
LAYOUTS = {(1, 2): (0, 3), (2, 2): (0, 1, 2, 3), (1, 4): (0, 3), (2, 1): (0, 3), (1, 1): (0, 3)}


# without groups every encoder is alike, as tests/training/test_parity.py has them; groups of four are as those of two
PROOFS = {(1, 1), (2, 1), (1, 4)}
PARAMETERS = [
    pytest.param(layout, marks=[pytest.mark.proof] if layout in PROOFS else []) for layout in LAYOUTS
]


@pytest.mark.distributed
@pytest.mark.parametrize("layout", PARAMETERS, ids="dp{0[0]}-tp{0[1]}".format)
def test_tensor_parallel_equals_serial(
    serial: tuple[str, Curve], squares: Path, tmp_path: Path, layout: tuple[int, int]
) -> None:
    dp, tp = layout
    run = recipe(squares, tmp_path / "run", serial[0], tp, dp)
    settings = [ZERO[stage] for stage in LAYOUTS[layout]]
    for curves in run_distributed(train_curves, dp * tp, run, settings, STEPS, tp=tp):
        for curve in curves:
            assert_same_curve(curve, serial[1])


VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "encoder whole": {"parallel": {"encoder": False}},
    "decoder whole": {"parallel": {"decoder": False}},
    "head of its own": {"decoder": {"tied": False}},
    "frozen encoder": {"train": {"freeze": ["encoder.*"]}},
    "two texts at once": {"data": {"texts_per_image": 2}},
    "masked words beside next ones": {"train": {"objectives": {"lm": 0.5, "masked_lm": 0.5}}},
}


def variant_of(run: Any, name: str) -> Any:
    tree = run.model_dump(mode="json")
    for section, values in VARIANTS[name].items():
        (tree["model"]["decoder"] if section == "decoder" else tree[section]).update(values)
    return type(run).model_validate(tree)


@pytest.mark.distributed
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_equal_serial_too(squares: Path, tmp_path: Path, name: str) -> None:
    alone = variant_of(recipe(squares, tmp_path / "alone", "swin", tp=1, dp=1), name)
    split = variant_of(recipe(squares, tmp_path / "split", "swin", tp=2, dp=1), name)
    (expected,) = run_distributed(train_curve, 1, alone, ZERO[0], STEPS)
    for curve in run_distributed(train_curve, 2, split, ZERO[3], STEPS, tp=2):
        assert_same_curve(curve, expected)


def train_without_mpu(*args: Any) -> Curve:
    """DeepSpeed takes all ranks for data-parallel ones."""
    from git_scale.parallel import engine

    engine.mpu_of_run = lambda: None  # type: ignore[assignment]
    return train_curve(*args)


def train_without_flags(*args: Any) -> Curve:
    """Split parameters count once per group in the gradient norm instead of on every rank."""
    return _changed_after_materialising(_clear_flag, *args)


def train_with_a_changed_norm(topology: Topology, *args: Any) -> Curve:
    """A parameter that should be the same in a group is not."""
    return _changed_after_materialising(_perturb_norm if topology.tp_rank == 1 else _leave, topology, *args)


def _changed_after_materialising(change: Any, *args: Any) -> Curve:
    from git_scale.training import build

    place = build.materialise_model

    def materialise_and_change(*where: Any) -> Any:
        materialised = place(*where)
        for name, parameter in materialised.model.named_parameters():
            change(name, parameter)
        return materialised

    build.materialise_model = materialise_and_change
    return train_curve(*args)


def _clear_flag(name: str, parameter: Any) -> None:
    parameter.tensor_model_parallel = False


def _perturb_norm(name: str, parameter: Any) -> None:
    if name == "decoder.layers.0.attention_norm.weight":
        parameter.data += 0.1


def _leave(name: str, parameter: Any) -> None: ...


def train_on_other_images(topology: Topology, *args: Any) -> Curve:
    """The second rank of a group reads for itself, and reads something else."""
    from git_scale.training import build

    def unshared(batches: Any) -> Any:
        for batch in batches:
            yield batch if topology.tp_rank == 0 else replace(batch, images=batch.images.flip(-1))

    build.shared_over_tp = unshared
    return train_curve(topology, *args)


@pytest.fixture(scope="module")
def right(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Curve]:
    """A curve per ZeRO stage of what the mistakes below are made in."""
    run = recipe(squares, tmp_path_factory.mktemp("right") / "run", "vit", tp=2, dp=1)
    return run_distributed(train_curves, 2, run, ZERO, STEPS, tp=2)[0]


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize(
    "mistake", [train_without_mpu, train_without_flags, train_with_a_changed_norm, train_on_other_images]
)
def test_parity_notices(right: list[Curve], squares: Path, tmp_path: Path, mistake: Any, stage: int) -> None:
    if (mistake, stage) == (train_with_a_changed_norm, 3):
        stage = 2  # under stage 3 a parameter has no values to change at that moment
    run = recipe(squares, tmp_path / "run", "vit", tp=2, dp=1)
    with pytest.raises((AssertionError, RuntimeError)):
        assert_same_curve(run_distributed(mistake, 2, run, ZERO[stage], STEPS, tp=2)[0], right[stage])


def replicated_after_steps(topology: Topology, device: torch.device, run: Any) -> tuple[list[str], Curve]:
    """Digests of what the ranks of a group hold alike, after the run's steps."""
    from git_scale.training.build import build_trainer

    trainer = build_trainer(run, ZERO[1], topology, device)
    curve = curve_of(trainer, run.train.steps)
    digests = [
        f"{name} {hashlib.sha256(parameter.detach().numpy().tobytes()).hexdigest()}"
        for name, parameter in trainer.engine.model.module.named_parameters()
        if not parameter.tensor_model_parallel
    ]
    return digests, curve


def with_dropout(data: Path, run_dir: Path, steps: int, **train: Any) -> Any:
    run = recipe(data, run_dir, "vit", tp=2, dp=2, steps=steps, **train)
    tree = run.model_dump(mode="json")
    tree["model"]["decoder"]["dropout"] = 0.2
    tree["model"]["encoder"]["options"] |= {"proj_drop_rate": 0.1, "drop_path_rate": 0.1}
    return type(run).model_validate(tree)


@pytest.mark.distributed
def test_replicated_parameters_stay_the_same_with_dropout(squares: Path, tmp_path: Path) -> None:
    run = with_dropout(squares, tmp_path / "run", steps=50)
    answers = run_distributed(replicated_after_steps, 4, run, tp=2)
    assert answers[0] == answers[1] == answers[2] == answers[3]
    assert len(answers[0][0]) > 20


def random_states_at_dropouts(topology: Topology, device: torch.device, run: Any) -> dict[str, str]:
    """Of a step: a digest of the random state with which each dropout begins, by its path in the model."""
    from timm.layers import DropPath
    from torch import nn

    from git_scale.models.cross_attention import HeadsAttention
    from git_scale.models.joint_attention import StreamAttention
    from git_scale.training.build import build_trainer

    paths: dict[int, str] = {}
    states: dict[str, str] = {}
    for kind in (StreamAttention, HeadsAttention, nn.Dropout, DropPath):
        drop = kind.forward

        def record_and_drop(module: Any, *args: Any, drop: Any = drop) -> Any:
            state = torch.random.get_rng_state().numpy().tobytes()
            drops = getattr(module, "p", 0) or getattr(module, "drop_prob", 0)
            if drops and id(module) in paths:  # FLOPs are counted on a model of its own
                states[paths[id(module)]] = hashlib.sha256(state).hexdigest()
            return drop(module, *args)

        kind.forward = record_and_drop  # type: ignore[method-assign]
    trainer = build_trainer(run, ZERO[1], topology, device)
    paths |= {id(module): path for path, module in trainer.engine.model.module.named_modules()}
    trainer.train_step()
    states["after the step"] = hashlib.sha256(torch.random.get_rng_state().numpy().tobytes()).hexdigest()
    return states


@pytest.mark.distributed
@pytest.mark.parametrize(("attention", "of_decoder"), [("joint", 2), ("cross", 4)])
def test_dropouts_within_split_layers_are_each_ranks_own_and_all_others_common(
    squares: Path, tmp_path: Path, attention: str, of_decoder: int
) -> None:
    tree = with_dropout(squares, tmp_path / "run", steps=1).model_dump(mode="json")
    tree["model"]["decoder"]["attention"] = attention
    run = RunConfig.model_validate(tree)
    first, second, other_first, other_second = run_distributed(random_states_at_dropouts, 4, run, tp=2)
    split = {path for path in first if path.endswith((".attention", ".cross_attention", ".drop1"))}
    assert len(split) == of_decoder + 2, "two layers of the decoder, two blocks of the encoder"
    assert {path for path in first if ".hidden_dropout" in path or ".drop2" in path} <= first.keys() - split
    assert len(first) > 2 * len(split)
    for one, other in ((first, second), (other_first, other_second)):
        assert {path for path in one if one[path] != other[path]} == split
    assert all(first[path] != other_first[path] for path in first), "data-parallel ranks share none"


def save_with_a_changed_norm(topology: Topology, device: torch.device, run: Any) -> str:
    from git_scale.training.build import build_trainer

    trainer = build_trainer(run, ZERO[3], topology, device)
    name = "decoder.layers.0.attention_norm.weight"
    masters = {master.piece.name: master for master in trainer.engine._rank_state._masters()}
    if topology.global_rank == 1:  # one rank, one number, the last bit
        masters[name].view(masters[name].vector)[-1].mul_(1 + 2**-23)
    try:
        return f"saved: {trainer.save()}"
    except RuntimeError as error:
        return str(error)


@pytest.mark.distributed
def test_ranks_that_differ_are_found_before_a_checkpoint_is_written(squares: Path, tmp_path: Path) -> None:
    run = recipe(squares, tmp_path / "run", "vit", tp=2, dp=1)
    for answer in run_distributed(save_with_a_changed_norm, 2, run, tp=2):
        assert "different values of decoder.layers.0.attention_norm.weight and 0 more" in answer
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.distributed
def test_recomputed_activations_are_dropped_as_before(squares: Path, tmp_path: Path) -> None:
    """Activation checkpointing runs each block twice: with other masks the gradients would be others."""
    plain = with_dropout(squares, tmp_path / "plain", steps=4)
    again = with_dropout(squares, tmp_path / "again", steps=4, activation_checkpointing=True)
    expected, found = (run_distributed(replicated_after_steps, 4, run, tp=2)[0][1] for run in (plain, again))
    assert_same_curve(found, expected)


@pytest.mark.distributed
def test_bf16_follows_fp32_within_its_noise(squares: Path, tmp_path: Path) -> None:
    exact = recipe(squares, tmp_path / "fp32", "davit", tp=2, dp=1)
    coarse = recipe(squares, tmp_path / "bf16", "davit", tp=2, dp=1, precision="bf16")
    expected, found = (
        run_distributed(train_curve, 2, run, ZERO[3], STEPS, tp=2)[0] for run in (exact, coarse)
    )
    assert_same_curve(found, expected, tolerance=0.03)
