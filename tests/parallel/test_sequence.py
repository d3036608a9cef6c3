"""Sequence parallelism: the same losses and gradient norms as the serial run, from less memory."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from git_scale.config import ModelConfig, ParallelConfig
from git_scale.contradictions import contradictions
from git_scale.errors import ConfigError
from git_scale.models.build import build_model
from git_scale.parallel.splits import splits_of
from git_scale.parallel.topology import Topology
from git_scale.testing.curves import ZERO, Curve, assert_same_curve, curve_of
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import SIDE, tiny_run
from git_scale.testing.towers import ENCODERS, HEADS
from git_scale.training.build import build_trainer

STEPS = 3
Settings = dict[str, tuple[Any, int]]  # run and ZeRO stage by name

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "encoder whole, accumulation": {"parallel": {"encoder": False}, "train": {"micro_batch": 2}},
    "decoder whole, recomputation": {
        "parallel": {"decoder": False},
        "train": {"activation_checkpointing": True},
    },
    "head of its own, two texts": {"decoder": {"tied": False}, "data": {"texts_per_image": 2}},
    "frozen encoder": {"train": {"freeze": ["encoder.*"]}},
    "frozen decoder": {"train": {"freeze": ["decoder.*"]}},
}


def recipe(
    squares: Path, run_dir: Path, encoder: str, tp: int = 2, dp: int = 1, **changes: dict[str, Any]
) -> Any:
    run = tiny_run(squares, run_dir, train={"micro_batch": 8 // dp}, parallel={"tp": tp, "sequence": tp > 1})
    tree = run.model_dump(mode="json")
    tree["model"]["encoder"] |= ENCODERS[encoder]
    tree["model"]["decoder"] |= {"heads": HEADS}
    for section, values in changes.items():
        (tree["model"]["decoder"] if section == "decoder" else tree[section]).update(values)
    return type(run).model_validate(tree)


def build(topology: Topology, device: torch.device, run: Any, stage: int) -> Any:
    return build_trainer(run, ZERO[stage], topology, device)


def train_curves(topology: Topology, device: torch.device, settings: Settings) -> dict[str, Curve]:
    return {name: curve_of(build(topology, device, *setting), STEPS) for name, setting in settings.items()}


def train_curves_without_sums(topology: Topology, device: torch.device, settings: Settings) -> Any:
    """What a rank computes of its own images counts as the gradient of all of them."""
    from git_scale.parallel import materialise

    materialise.sum_gradients = lambda *_: None  # type: ignore[assignment]
    return train_curves(topology, device, settings)


@pytest.fixture(scope="module")
def serial(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Curve]:
    """Of one process without any parallelism: each encoder, and the variants that compute something else."""
    folder = tmp_path_factory.mktemp("serial")
    settings = {name: (recipe(squares, folder / name, name, tp=1), 0) for name in ENCODERS}
    for name in ("frozen encoder", "frozen decoder", "head of its own, two texts"):
        settings[name] = (recipe(squares, folder / name, "vit", tp=1, **VARIANTS[name]), 0)
    (curves,) = run_distributed(train_curves, 1, settings)
    assert max(norm for _, norm in curves["vit"]) > 0.5, "clipping must be active"
    assert all(curve[-1][0] < curve[0][0] for curve in curves.values())
    return curves


@pytest.mark.distributed
@pytest.mark.parametrize("dp", [1, 2])
def test_sequence_parallel_equals_serial(
    serial: dict[str, Curve], squares: Path, tmp_path: Path, dp: int
) -> None:
    stages = {"vit": (0, 1, 2, 3), "swin": (0, 3), "davit": (0, 3)} if dp > 1 else {"vit": (0, 3)}
    settings = {
        f"{encoder} {stage}": (recipe(squares, tmp_path / f"{encoder}{stage}", encoder, dp=dp), stage)
        for encoder in stages
        for stage in stages[encoder]
    }
    for curves in run_distributed(train_curves, 2 * dp, settings, tp=2):
        for name, curve in curves.items():
            assert_same_curve(curve, serial[name.split()[0]])


@pytest.mark.proof
@pytest.mark.distributed
def test_variants_equal_serial_too(serial: dict[str, Curve], squares: Path, tmp_path: Path) -> None:
    settings = {
        name: (recipe(squares, tmp_path / name, "vit", **change), 3) for name, change in VARIANTS.items()
    }
    for curves in run_distributed(train_curves, 2, settings, tp=2):
        for name, curve in curves.items():
            assert_same_curve(curve, serial.get(name, serial["vit"]))


@pytest.mark.distributed
def test_parity_notices_gradients_that_are_not_summed(
    serial: dict[str, Curve], squares: Path, tmp_path: Path
) -> None:
    settings = {"vit": (recipe(squares, tmp_path / "run", "vit"), 0)}
    curves = run_distributed(train_curves_without_sums, 2, settings, tp=2)[0]
    with pytest.raises(AssertionError):
        assert_same_curve(curves["vit"], serial["vit"])


def replicas_and_draws(
    topology: Topology, device: torch.device, settings: Settings
) -> dict[str, tuple[list[str], Curve, dict[str, list[str]]]]:
    """Digests of what all ranks hold alike after the run's steps, its curve, and the random states at which dropouts
    of the first step draw."""
    answers = {}
    for setting in settings:
        trainer = build(topology, device, *settings[setting])
        model = trainer.engine.model.module
        dropouts = {
            "encoder": model.encoder.backbone.blocks[0].attn.proj_drop,
            "embedding": model.decoder.embedding.dropout,
            "heads": model.decoder.layers[0].attention,
            "stream": model.decoder.layers[0].hidden_dropout,
        }
        draws: dict[str, list[str]] = {name: [] for name in dropouts}
        hooks = [
            module.register_forward_pre_hook(functools.partial(note_random_state, draws[name]))
            for name, module in dropouts.items()
        ]
        first = trainer.train_step()
        for hook in hooks:
            hook.remove()
        curve = [(first.loss, first.grad_norm), *curve_of(trainer, STEPS)]
        alike = [
            f"{name} {digest(parameter.detach())}"
            for name, parameter in model.named_parameters()
            if not parameter.tensor_model_parallel
        ]
        answers[setting] = (alike, curve, draws)
    return answers


def note_random_state(states: list[str], *_: Any) -> None:
    states.append(digest(torch.get_rng_state()))


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def with_dropout(squares: Path, run_dir: Path, attention: str = "joint", **changes: Any) -> Any:
    decoder = {"dropout": 0.2, "attention": attention}
    run = recipe(squares, run_dir, "vit", dp=2, decoder=decoder, **changes)
    tree = run.model_dump(mode="json")
    tree["model"]["encoder"]["options"] |= {"proj_drop_rate": 0.1, "drop_path_rate": 0.1}
    return type(run).model_validate(tree)


@pytest.mark.distributed
def test_dropout_differs_over_a_group_and_is_drawn_again_as_before(squares: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "plain": {},
        "cross-attention": {"attention": "cross"},
        "recomputed": {"train": {"activation_checkpointing": True}},
        "decoder whole": {"parallel": {"decoder": False}},
    }
    settings = {
        name: (with_dropout(squares, tmp_path / name, **change), 1) for name, change in changes.items()
    }
    answers = run_distributed(replicas_and_draws, 4, settings, tp=2)
    for name in settings:
        alike, curve, _ = answers[0][name]
        assert len(alike) > 20
        assert all(answer[name][0] == alike and answer[name][1] == curve for answer in answers)
    plain, again = answers[0]["plain"], answers[0]["recomputed"]
    assert_same_curve(again[1], plain[1])
    for place in ("encoder", "heads", "stream"):
        assert again[2][place] == 2 * plain[2][place]
    for place in plain[2]:
        draws = [answer["plain"][2][place][0] for answer in answers]
        assert len(set(draws)) == 4, f"ranks drop the same at {place}"
    # A decoder left whole computes the same on both ranks of a group.
    whole = [answer["decoder whole"][2]["stream"] for answer in answers]
    assert whole[0] == whole[1] != whole[2] == whole[3]


def saved_bytes(topology: Topology, device: torch.device, settings: dict[str, Any]) -> dict[str, int]:
    """What the forward pass of a micro-batch keeps for the backward pass, without parameters."""
    return {name: _saved_bytes(build(topology, device, run, 0)) for name, run in settings.items()}


def _saved_bytes(trainer: Any) -> int:
    parameters = {p.untyped_storage().data_ptr() for p in trainer.engine.model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = trainer.micro_losses(next(trainer._batches), {"lm": 1})
        total = sum(storage.nbytes() for storage in kept.values())
    del loss
    return total


@pytest.mark.distributed
def test_a_rank_keeps_fewer_activations(squares: Path, tmp_path: Path) -> None:
    options = {"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": HEADS}
    settings = {}
    for name in ("plain", "plain recomputed", "divided", "divided recomputed"):
        checkpointing = {"activation_checkpointing": name.endswith("recomputed")}
        run = recipe(squares, tmp_path / name, "vit", train=checkpointing)
        run.model.encoder.options.update(options)
        parallel = run.parallel.model_copy(update={"sequence": name.startswith("divided")})
        settings[name] = run.model_copy(update={"parallel": parallel})
    for kept in run_distributed(saved_bytes, 2, settings, tp=2):
        assert kept["divided"] < 0.8 * kept["plain"]
        assert kept["divided recomputed"] < 0.6 * kept["plain recomputed"]


def logits_in_evaluation(topology: Topology, device: torch.device, run: Any) -> np.ndarray:
    """Of three images, which do not divide by two."""
    trainer = build(topology, device, run, 0)
    trainer.engine.model.eval()
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(3, 1, 3, SIDE, SIDE, generator=generator)
    tokens = torch.randint(run.model.vocab_size, (3, 1, 6), generator=generator)
    with torch.no_grad():
        return trainer.engine.forward(images, tokens, torch.arange(18)).numpy()


@pytest.mark.distributed
def test_an_evaluation_takes_any_number_of_images(squares: Path, tmp_path: Path) -> None:
    alone, split = (recipe(squares, tmp_path / str(tp), "swin", tp=tp) for tp in (1, 2))
    (expected,) = run_distributed(logits_in_evaluation, 1, alone)
    for logits in run_distributed(logits_in_evaluation, 2, split, tp=2):
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_batch_norms_are_refused() -> None:
    config = {"encoder": {"name": "resnet18"}, "decoder": {"width": 32, "heads": HEADS, "ffn": 64}}
    with torch.device("meta"):
        model = build_model(ModelConfig.model_validate(config))
    parallel = ParallelConfig(tp=2, encoder=False)
    splits_of(model, parallel)
    with pytest.raises(ConfigError, match=r"batch norms .* set parallel.sequence=false"):
        splits_of(model, parallel.model_copy(update={"sequence": True}))


def test_images_that_do_not_divide_are_refused(squares: Path, tmp_path: Path) -> None:
    run = recipe(squares, tmp_path, "vit", tp=2, train={"micro_batch": 3})
    (problem,) = contradictions(run)
    assert problem.startswith("train.micro_batch=3 is no multiple of parallel.tp=2")
    assert "set train.micro_batch=4" in problem
