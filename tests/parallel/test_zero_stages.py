"""DeepSpeed's inner names that parallel/zero.py and parallel/engine.py lean on, one by one, and what is made of them.

A release of DeepSpeed that moves one of them fails the test of that name.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from git_scale.checkpoint.state import EMA, MOMENT_NAMES, WEIGHT, ParameterPiece
from git_scale.config import RunConfig
from git_scale.parallel import engine as engine_module
from git_scale.parallel import zero as zero_module
from git_scale.parallel.topology import Topology
from git_scale.testing.distributed import run_distributed
from git_scale.testing.tiny import tiny_run
from git_scale.training.build import build_trainer

Check = Callable[[Any], bool]


@dataclass(frozen=True)
class Internal:
    """A name of DeepSpeed's, on what it is looked for, under which ZeRO stages, and what it must be."""

    owner: str
    name: str
    stages: tuple[int, ...]
    holds: Check

    def __str__(self) -> str:
        return f"{self.owner}.{self.name}"


ALL, ZERO, FLAT, PARTED = (0, 1, 2, 3), (1, 2, 3), (1, 2), (3,)


def tensors(found: Any) -> bool:
    return len(found) > 0 and all(isinstance(item, Tensor) for item in found)


def whole_number(found: Any) -> bool:
    return isinstance(found, int) and found >= 0


INTERNALS = (
    Internal("deepspeed", "DeepSpeedEngine", ALL, callable),
    Internal("deepspeed", "DeepSpeedConfig", ALL, callable),
    Internal("deepspeed", "init_distributed", ALL, callable),
    Internal("deepspeed.ops", "__compatible_ops__", ALL, lambda found: "deepspeed_shm_comm" in found),
    Internal("deepspeed.ops.adam", "DeepSpeedCPUAdam", ALL, callable),
    Internal("deepspeed.zero", "Init", ALL, callable),
    Internal("deepspeed.zero.Init", "_convert_to_zero_parameters", ALL, callable),
    Internal("engine", "_do_optimizer_sanity_check", ALL, callable),
    Internal("engine", "zero_optimization", ALL, lambda found: isinstance(found(), bool)),
    Internal("engine", "module", ALL, lambda found: isinstance(found, nn.Module)),
    Internal("engine", "optimizer", ALL, lambda found: len(found.param_groups) > 1),
    Internal("engine", "basic_optimizer", ALL, lambda found: isinstance(found, torch.optim.AdamW)),
    Internal("engine", "backward", ALL, callable),
    Internal("engine", "step", ALL, callable),
    Internal("engine", "empty_partition_cache", ALL, callable),
    Internal("engine", "is_gradient_accumulation_boundary", ALL, lambda found: found() in (True, False)),
    Internal("engine", "get_global_grad_norm", ZERO, lambda found: float(found()) > 0),
    Internal("engine", "was_step_applied", ALL, lambda found: found() is True),
    Internal("optimizer", "param_groups", ALL, lambda found: all("lr" in group for group in found)),
    Internal("optimizer", "averaged_gradients", FLAT, lambda found: isinstance(found, dict)),
    Internal("optimizer", "check_overflow", FLAT, callable),
    Internal("optimizer", "check_grad_overflow", FLAT, lambda found: isinstance(found, bool)),
    Internal("optimizer", "single_partition_of_fp32_groups", FLAT, tensors),
    Internal("optimizer", "update_lp_params", FLAT, callable),
    Internal(
        "optimizer", "grad_position", PARTED, lambda found: all(len(place) == 3 for place in found.values())
    ),
    Internal("optimizer", "get_param_id", PARTED, callable),
    Internal("optimizer", "fp32_partitioned_groups_flat", PARTED, tensors),
    Internal("optimizer", "_reassign_or_swap_out_partitioned_parameters", PARTED, callable),
    Internal("optimizer", "persistent_parameters", PARTED, tensors),
    Internal("optimizer", "invalidate_secondary_tensor", PARTED, callable),
    Internal(
        "basic_optimizer", "state", ALL, lambda found: all("exp_avg" in item for item in found.values())
    ),
    Internal("basic_optimizer", "param_groups", ALL, lambda found: all("name" in group for group in found)),
    Internal("parameter", "_hp_mapping", FLAT, lambda found: found is not None),
    Internal("parameter._hp_mapping", "param_group_index", FLAT, whole_number),
    Internal(
        "parameter._hp_mapping", "lp_fragment_address", FLAT, lambda found: found.start >= 0 < found.numel
    ),
    Internal(
        "parameter._hp_mapping", "hp_fragment_address", FLAT, lambda found: found.start >= 0 < found.numel
    ),
    Internal("parameter", "ds_numel", PARTED, whole_number),
    Internal("parameter", "ds_tensor", PARTED, lambda found: isinstance(found, Tensor)),
    Internal("parameter", "all_gather", PARTED, callable),
)
PRECISIONS = (("fp32", "fp32"), ("bf16", "fp32"), ("bf16", "bf16"))
KINDS = [(0, "fp32", "fp32"), *((stage, *pair) for stage in (1, 2, 3) for pair in PRECISIONS)]


def owner_of(name: str, engine: Any) -> Any:
    """By the dotted name of INTERNALS; a class for what only comes into being under some stage."""
    import deepspeed

    first, *path = name.split(".")
    parameter = engine.module.get_parameter("decoder.layers.0.fc1.weight")
    roots = {
        "deepspeed": deepspeed,
        "engine": engine,
        "optimizer": engine.optimizer,
        "basic_optimizer": engine.basic_optimizer,
        "parameter": parameter,
    }
    owner = roots[first]
    for attribute in path:
        owner = getattr(owner, attribute)
    return owner


def examine(
    topology: Topology, device: torch.device, squares: Path, folder: Path
) -> dict[Any, dict[str, Any]]:
    """By kind: the class of the optimizer, how each name was found, and what RankState makes of them."""
    answers = {}
    for stage, precision, gradient_precision in KINDS:
        run = tiny_run(
            squares,
            folder / f"{stage}-{precision}-{gradient_precision}",
            train={"precision": precision, "gradient_precision": gradient_precision},
            optimizer={"ema": 0.9},
        )
        trainer = build_trainer(run, {"zero_optimization": {"stage": stage}}, topology, device)
        trainer.train_step()
        engine = trainer.engine._engine
        answers[stage, precision, gradient_precision] = {
            "class": type(engine.optimizer).__name__,
            **{
                str(internal): _state_of(internal, engine)
                for internal in INTERNALS
                if stage in internal.stages
            },
            "holdings": _problems_of_holdings(trainer.engine, run),
            "skipping": _problems_of_skipping(trainer),
        }
    return answers


def _state_of(internal: Internal, engine: Any) -> str:
    try:
        found = getattr(owner_of(internal.owner, engine), internal.name)
        return "as it was" if internal.holds(found) else f"is {found!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _problems_of_holdings(engine: Any, run: RunConfig) -> list[str]:
    """Pieces that do not make up the model, and numbers that do not come back where they were."""
    problems = []
    held: dict[tuple[ParameterPiece, str], Tensor] = {
        (piece, kind): numbers().to("cpu", copy=True)
        for piece, kind, _, numbers in engine._rank_state.pieces()
    }
    shapes = engine._materialised.shapes
    for name, shape in shapes.items():
        lengths = dict.fromkeys((WEIGHT, *MOMENT_NAMES, EMA), 0)
        for piece, kind in held:
            if piece.name == name:
                lengths[kind] += piece.length
        if set(lengths.values()) != {shape.numel()}:
            problems.append(f"{name} is held as {lengths} numbers of {shape.numel()}")
    if engine._rank_state.adam_steps != 1:
        problems.append(f"{engine._rank_state.adam_steps} steps of Adam after one")
    others = {key: numbers + 1 for key, numbers in held.items()}
    engine._rank_state.restore(lambda piece, kind: others[piece, kind], 7, has_average=True)
    if engine._rank_state.adam_steps != 7:
        problems.append(f"{engine._rank_state.adam_steps} steps of Adam where 7 were restored")
    for piece, kind, _, numbers in engine._rank_state.pieces():
        if not torch.equal(numbers().cpu(), others[piece, kind]):
            problems.append(f"{kind} of {piece} is not what was restored")
    for name, parameter in engine.model.module.named_parameters():
        if parameter.numel() == 0:
            continue  # partitioned: seen in its piece
        expected = others[ParameterPiece(name, 0, parameter.numel()), WEIGHT].to(parameter.dtype)
        if not torch.equal(parameter.detach().flatten(), expected):
            problems.append(f"the forward pass uses other weights of {name}")
    return problems


def _problems_of_skipping(trainer: Any) -> list[str]:
    """What is left of a step whose gradients are not finite."""
    engine, problems = trainer.engine, []
    before = {key[:2]: key[3]().clone() for key in engine._rank_state.pieces()}
    stem = engine.model.module.encoder
    hook = stem.register_forward_hook(lambda _, __, output: output * torch.inf)
    bad = trainer.train_step()
    hook.remove()
    if not bad.skipped:
        problems.append("it was not skipped")
    for piece, kind, _, numbers in engine._rank_state.pieces():
        if not torch.equal(numbers(), before[piece, kind]):
            problems.append(f"{kind} of {piece.name} has changed")
    if trainer.train_step().skipped:
        problems.append("the next step is skipped as well")
    return problems


@pytest.fixture(scope="module")
def found(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_distributed(examine, 1, squares, tmp_path_factory.mktemp("zero"))[0]


@pytest.mark.distributed
@pytest.mark.parametrize("internal", INTERNALS, ids=str)
def test_deepspeed_still_has(found: Any, internal: Internal) -> None:
    states = {kind: answer[str(internal)] for kind, answer in found.items() if kind[0] in internal.stages}
    assert states == dict.fromkeys(states, "as it was")
    assert states


@pytest.mark.distributed
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
def test_each_stage_has_one_class_of_optimizer(found: Any, kind: tuple[int, str, str]) -> None:
    classes = {0: "AdamW", 1: "DeepSpeedZeroOptimizer", 2: "DeepSpeedZeroOptimizer"}
    assert found[kind]["class"] == classes.get(kind[0], "DeepSpeedZeroOptimizer_Stage3")


@pytest.mark.distributed
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
def test_what_a_rank_holds_is_read_and_written(found: Any, kind: tuple[int, str, str]) -> None:
    assert found[kind]["holdings"] == []


@pytest.mark.distributed
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
def test_a_step_that_is_skipped_leaves_nothing(found: Any, kind: tuple[int, str, str]) -> None:
    assert found[kind]["skipping"] == []


OF_OTHERS = {
    *("get_parameter", "named_parameters", "parameters", "zero_grad"),  # torch's
    *("values", "get", "clear"),  # Python's
    *("start", "numel"),  # of addresses, looked at with these
}
HELD_IN = ("self._engine", "self._zero", "self._inner", "deepspeed", "mapping", "persistent[0]")


@pytest.mark.parametrize("module", [zero_module, engine_module], ids=["zero", "engine"])
def test_the_list_is_whole(module: Any) -> None:
    """Every attribute of what DeepSpeed made that the two files ask for is in the list."""
    listed = {internal.name for internal in INTERNALS} | {
        part for i in INTERNALS for part in i.owner.split(".")
    }
    asked = {
        node.attr
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).startswith(HELD_IN)
    }
    private = {
        node.attr
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr.startswith(("ds_", "_hp_"))
    }
    assert (asked | private) - listed - OF_OTHERS == set()


DOCUMENTED = {
    "DeepSpeedCPUAdam",
    "get_global_grad_norm",
    "init_distributed",
    "is_gradient_accumulation_boundary",
}
DOCUMENTED |= {"Init", "module", "param_groups", "state", "step"}


def test_the_list_is_part_of_the_page_of_private_names() -> None:
    page = Path(__file__).parents[2] / "docs" / "private_names.md"
    section = page.read_text(encoding="utf-8").partition("## deepspeed")[2].partition("\n## ")[0]
    missing = {i.name for i in INTERNALS} - set(re.findall(r"\w+", section)) - DOCUMENTED
    assert missing == set()
