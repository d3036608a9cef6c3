"""The decoder with cross-attention in parallel: losses and gradient norms of the serial run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from git_scale.config import RunConfig
from git_scale.parallel.topology import Topology
from git_scale.testing.curves import ZERO, Curve, assert_same_curve, curve_of, train_curve
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import tiny_run
from git_scale.testing.towers import ENCODERS, HEADS
from git_scale.training.build import build_trainer

STEPS = 3
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {},
    "recomputed": {"train": {"activation_checkpointing": True}},
    "frozen image": {"train": {"freeze": ["encoder.*", "projection.*"]}},
    "two texts": {"data": {"texts_per_image": 2}},
    "sequence": {"parallel": {"sequence": True}},
    "two texts in sequence": {"data": {"texts_per_image": 2}, "parallel": {"sequence": True}},
}
Setting = tuple[str, int]  # variant and ZeRO stage
# (dp, tp) -> settings; together each layout and each variant with each stage that the others do not imply
CHOICE: dict[tuple[int, int], list[Setting]] = {
    (1, 1): [("two texts", 0), ("recomputed", 3)],
    (2, 1): [("plain", 1), ("recomputed", 2), ("two texts", 3)],
    (1, 2): [("plain", 0), ("two texts", 1), ("sequence", 3)],
    (2, 2): [
        ("recomputed", 0),
        ("two texts in sequence", 1),
        ("sequence", 2),
        ("plain", 3),
        ("frozen image", 3),
    ],
}


def recipe(squares: Path, run_dir: Path, layout: tuple[int, int], variant: str) -> RunConfig:
    dp, tp = layout
    run = tiny_run(squares, run_dir, train={"micro_batch": 8 // dp}, parallel={"tp": tp})
    tree = run.model_dump(mode="json")
    tree["model"]["encoder"] |= ENCODERS["vit"]
    tree["model"]["decoder"] |= {"heads": HEADS, "attention": "cross"}
    for section, values in VARIANTS[variant].items():
        tree[section].update(values)
    return RunConfig.model_validate(tree)


def train(topology: Topology, device: torch.device, settings: list[tuple[RunConfig, int]]) -> list[Curve]:
    return [curve_of(build_trainer(run, ZERO[stage], topology, device), STEPS) for run, stage in settings]


def train_with_a_cross_norm_of_its_own(topology: Topology, *args: Any) -> list[Curve]:
    """A parameter that should be the same in a group is not."""
    from git_scale.training import build

    place = build.materialise_model

    def materialise_and_change(*where: Any) -> Any:
        materialised = place(*where)
        materialised.model.decoder.layers[0].cross_norm.weight.data += 0.1 * topology.tp_rank
        return materialised

    build.materialise_model = materialise_and_change
    return train(topology, *args)


def train_without_sums(*args: Any) -> list[Curve]:
    """What a rank computes of its own images counts as the gradient of all of them."""
    from git_scale.parallel import materialise

    materialise.sum_gradients = lambda *_: None  # type: ignore[assignment]
    return train(*args)


@pytest.fixture(scope="module")
def serial(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Curve]:
    """By variant; how it is computed is not what is computed."""
    folder = tmp_path_factory.mktemp("serial")
    names = ("plain", "two texts", "frozen image")
    runs = [(recipe(squares, folder / name, (1, 1), name), 0) for name in names]
    (curves,) = run_distributed(train, 1, runs)
    for curve in curves:
        assert max(norm for _, norm in curve) > 0.5, "clipping must be active"
        assert curve[-1][0] < curve[0][0]
    one, two, frozen = curves
    for other in (two, frozen):
        with pytest.raises(AssertionError):
            assert_same_curve(one, other)
    same = {"plain": one, "recomputed": one, "sequence": one}
    return {**same, "two texts": two, "two texts in sequence": two, "frozen image": frozen}


def compare(
    serial: dict[str, Curve],
    squares: Path,
    folder: Path,
    layout: tuple[int, int],
    settings: list[Setting],
    how: Any = train,
) -> None:
    runs = [
        (recipe(squares, folder / f"{variant} {stage}", layout, variant), stage)
        for variant, stage in settings
    ]
    for curves in run_distributed(how, layout[0] * layout[1], runs, tp=layout[1]):
        for (variant, _), curve in zip(settings, curves, strict=True):
            assert_same_curve(curve, serial[variant])


@pytest.mark.distributed
@pytest.mark.parametrize("layout", CHOICE, ids="dp{0[0]}-tp{0[1]}".format)
def test_cross_attention_equals_serial(
    serial: dict[str, Curve], squares: Path, tmp_path: Path, layout: tuple[int, int]
) -> None:
    compare(serial, squares, tmp_path, layout, CHOICE[layout])


@pytest.mark.proof
@pytest.mark.distributed
@pytest.mark.parametrize("layout", CHOICE, ids="dp{0[0]}-tp{0[1]}".format)
def test_all_variants_under_all_stages_equal_serial(
    serial: dict[str, Curve], squares: Path, tmp_path: Path, layout: tuple[int, int]
) -> None:
    variants = [name for name in VARIANTS if layout[1] > 1 or not name.endswith("sequence")]
    rest = [(name, stage) for name in variants for stage in range(4) if (name, stage) not in CHOICE[layout]]
    compare(serial, squares, tmp_path, layout, rest)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("mistake", "setting"),
    [(train_with_a_cross_norm_of_its_own, ("plain", 1)), (train_without_sums, ("sequence", 0))],
)
def test_parity_notices(
    serial: dict[str, Curve], squares: Path, tmp_path: Path, mistake: Any, setting: Setting
) -> None:
    with pytest.raises(AssertionError):
        compare(serial, squares, tmp_path, (1, 2), [setting], mistake)


@pytest.mark.distributed
def test_joint_attention_is_another_run(serial: dict[str, Curve], squares: Path, tmp_path: Path) -> None:
    run = recipe(squares, tmp_path / "run", (1, 1), "plain")
    decoder = run.model.decoder.model_copy(update={"attention": "joint"})
    run = run.model_copy(update={"model": run.model.model_copy(update={"decoder": decoder})})
    (curve,) = run_distributed(train_curve, 1, run, ZERO[0], STEPS)
    with pytest.raises(AssertionError):
        assert_same_curve(curve, serial["plain"])
