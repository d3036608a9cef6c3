"""The DeepSpeed JSON holds only what DeepSpeed owns; the run's values reach DeepSpeed from the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from git_scale.config import RunConfig
from git_scale.errors import ConfigError
from git_scale.parallel.ds_config import (
    OWNED_BY_THE_RUN,
    check_ds_config,
    merge_ds_config,
    offloads_optimizer,
    read_ds_config,
    zero_stage,
)
from git_scale.recipes import known_keys, load_run

SHIPPED = sorted((Path(__file__).parents[2] / "ds_configs").glob("*.json"))
STAGES = {"zero1": 1, "zero2": 2, "zero3": 3, "zero3_wide": 3, "zero3_offload": 3, "zero3_plus_plus": 3}


def written(folder: Path, tree: Any) -> Path:
    path = folder / "ds.json"
    path.write_text(json.dumps(tree))
    return path


def problems_of(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_ds_config(path)
    return caught.value.problems


def test_every_zero_stage_is_shipped() -> None:
    assert {path.stem for path in SHIPPED} >= STAGES.keys()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_pass(path: Path) -> None:
    tree = read_ds_config(path)
    assert tree == json.loads(path.read_text())
    if path.stem in STAGES:
        assert zero_stage(tree, "bf16") == STAGES[path.stem]
    assert offloads_optimizer(tree) == ("offload" in path.stem)


def test_without_a_file_it_is_plain_data_parallelism() -> None:
    tree = read_ds_config(None)
    assert tree == {}
    assert zero_stage(tree, "fp32") == 0
    assert zero_stage(tree, "bf16") == 1  # DeepSpeed's optimizer for bf16 without ZeRO is not Adam
    assert not offloads_optimizer(tree)


@pytest.mark.parametrize("key", OWNED_BY_THE_RUN)
def test_what_the_run_owns_is_refused_with_its_owner(key: str, tmp_path: Path) -> None:
    path = written(tmp_path, {key: {}, "zero_optimization": {"stage": 2}})
    assert problems_of(path) == [
        f"{path}: '{key}' belongs to the run: set {OWNED_BY_THE_RUN[key]} in the recipe and leave it out here"
    ]


def test_nothing_that_the_run_owns_is_forgotten() -> None:
    """By name: the test above would lose a key together with the table."""
    assert OWNED_BY_THE_RUN.keys() >= {
        *(
            "train_batch_size",
            "train_micro_batch_size_per_gpu",
            "gradient_accumulation_steps",
            "gradient_clipping",
        ),
        *("optimizer", "scheduler", "bf16", "bfloat16", "fp16", "amp", "torch_autocast", "steps_per_print"),
        *("tensorboard", "wandb", "csv_monitor", "data_efficiency", "curriculum_learning"),
    }


def test_every_owner_is_a_key_of_the_run() -> None:
    known = set(known_keys())
    for owner in OWNED_BY_THE_RUN.values():
        names = [word for word in owner.partition(" (")[0].split() if word != "and"]
        assert names
        assert [name for name in names if name.removesuffix(".*") not in known] == []


def test_what_the_run_writes_is_what_it_owns() -> None:
    """A key that is merged in without being refused in the file would silently win over the file."""
    merged = merge_ds_config({"zero_optimization": {"reduce_bucket_size": 5}}, RunConfig(), dp=1)
    assert merged.pop("zero_optimization") == {
        "reduce_bucket_size": 5,
        "stage": 1,
    }  # bf16: the least stage alone
    assert merged.keys() <= OWNED_BY_THE_RUN.keys()


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, {"bf16": {}, "optimizer": {}, "zero_optimization": {"stage": 4}})
    problems = problems_of(path)
    assert [
        word in " ".join(problems) for word in ("'bf16'", "'optimizer'", "stage must be 0, 1, 2 or 3")
    ] == [True] * 3
    assert len(problems) == 3


@pytest.mark.parametrize("zero", [{"stage": 4}, {"stage": -1}, {"stage": "3"}, 3, None])
def test_another_stage_is_refused(zero: Any, tmp_path: Path) -> None:
    path = written(tmp_path, {"zero_optimization": zero})
    assert problems_of(path) == [
        f"{path}: zero_optimization.stage must be 0, 1, 2 or 3, found {zero!r}",
    ]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_stage_is_read(stage: int, tmp_path: Path) -> None:
    path = written(tmp_path, {"zero_optimization": {"stage": stage}})
    assert zero_stage(read_ds_config(path), "fp32") == stage


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "zero9.json"
    assert problems_of(path) == [f"--ds_config {path}: no such file; ds_configs/ holds ready ones"]


@pytest.mark.parametrize("content", [b'{"zero_optimization": ', b"", b"\xff\xfe", b"{'stage': 1}"])
def test_a_broken_file_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    (problem,) = problems_of(path)
    assert problem.startswith(f"--ds_config {path}: not valid JSON: ")


@pytest.mark.parametrize("tree", [[], 3, "zero", None])
def test_anything_but_an_object_is_refused(tree: Any, tmp_path: Path) -> None:
    path = written(tmp_path, tree)
    assert problems_of(path) == [f"--ds_config {path}: a DeepSpeed configuration is an object of settings"]


def test_the_effective_configuration_holds_the_runs_values() -> None:
    run = load_run("git_base", ["train.micro_batch=16", "optimizer.clip_norm=0.5"])
    own = {"zero_optimization": {"stage": 2}, "wall_clock_breakdown": True}
    assert merge_ds_config(own, run, dp=8) == {
        "zero_optimization": {"stage": 2},
        "wall_clock_breakdown": True,
        "train_batch_size": 4096,
        "train_micro_batch_size_per_gpu": 16,
        "gradient_accumulation_steps": 32,
        "gradient_clipping": 0.5,
        "bf16": {"enabled": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "gradient_allreduce_op": "sum",
        "steps_per_print": None,
    }
    assert own == {"zero_optimization": {"stage": 2}, "wall_clock_breakdown": True}


@pytest.mark.parametrize(
    ("zero", "gradient_precision", "accumulated", "exchanged", "summed"),
    [
        ({"stage": 1}, "fp32", "fp32", "fp32", "sum"),
        ({"stage": 2}, "bf16", "bf16", "bf16", "sum"),
        ({"stage": 3}, "fp32", "fp32", "fp32", "mean"),  # DeepSpeed divides there in any case
        ({"stage": 3}, "bf16", "bf16", "bf16", "mean"),
        # the kernel that quantises gradients takes any bits for fp16
        ({"stage": 3, "zero_quantized_gradients": True}, "fp32", "fp32", "fp16", "mean"),
    ],
)
def test_how_gradients_are_summed(
    zero: dict[str, Any], gradient_precision: str, accumulated: str, exchanged: str, summed: str
) -> None:
    run = load_run("git_base", [f"train.gradient_precision={gradient_precision}"])
    merged = merge_ds_config({"zero_optimization": zero}, run, dp=8)
    assert merged["data_types"] == {"grad_accum_dtype": accumulated}
    assert (merged["communication_data_type"], merged["gradient_allreduce_op"]) == (exchanged, summed)


def test_gradients_in_bf16_are_for_runs_in_bf16() -> None:
    with pytest.raises(ConfigError, match="is for runs in bf16"):
        load_run("git_base", ["train.precision=fp32", "train.gradient_precision=bf16"])


@pytest.mark.parametrize("dp", [1, 2, 64])
def test_deepspeeds_batch_equation_holds(dp: int) -> None:
    """DeepSpeed refuses a batch that is not micro-batch x accumulation x ranks."""
    merged = merge_ds_config({}, load_run("git_base"), dp)
    assert merged["train_batch_size"] == (
        merged["train_micro_batch_size_per_gpu"] * merged["gradient_accumulation_steps"] * dp
    )


def test_single_precision_switches_bf16_off() -> None:
    run = load_run("git_base", ["train.precision=fp32"])
    assert merge_ds_config({}, run, dp=1)["bf16"] == {"enabled": False}


@pytest.mark.parametrize(
    ("zero", "ranks", "tp", "has_gpu", "message"),
    [
        ({"offload_optimizer": {"device": "nvme"}}, 1, 1, True, "offload_optimizer.device='nvme'"),
        ({"zero_hpz_partition_size": 8}, 12, 1, True, "zero_hpz_partition_size=8 does not divide 12 ranks"),
        ({"zero_hpz_partition_size": 2}, 4, 2, True, "does not know of parallel.tp=2"),
        ({"zero_quantized_gradients": True}, 4, 2, True, "does not know of parallel.tp=2"),
        ({"zero_quantized_weights": True}, 4, 1, False, "quantises on CUDA only"),
    ],
)
def test_what_these_ranks_cannot_run_is_refused(
    zero: dict[str, Any], ranks: int, tp: int, has_gpu: bool, message: str
) -> None:
    tree = {"zero_optimization": {"stage": 3, **zero}}
    with pytest.raises(ConfigError, match=message):
        check_ds_config(tree, load_run("git_base", [f"parallel.tp={tp}"]), ranks, has_gpu)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_run_on_gpu_nodes_of_eight(path: Path) -> None:
    check_ds_config(read_ds_config(path), load_run("git_base"), world_size=64, has_gpu=True)


@pytest.mark.parametrize(
    ("zero", "precision", "problems"),
    [
        ({"stage": 0, "overlap_comm": True}, "fp32", ["overlap_comm has no effect at ZeRO stage 0"]),
        ({"reduce_bucket_size": 5}, "fp32", ["reduce_bucket_size has no effect at ZeRO stage 0"]),
        ({"stage": 0, "overlap_comm": True}, "bf16", []),  # where it is stage 1
        (
            {"stage": 2, "stage3_max_live_parameters": 5},
            "fp32",
            ["stage3_max_live_parameters has no effect at"],
        ),
        (
            {"stage": 1, "offload_param": {"device": "cpu"}},
            "fp32",
            ["offload_param has no effect at ZeRO stage 1"],
        ),
        ({"stage": 1, "offload_param": {"device": "none"}}, "fp32", []),
        ({"stage": 0, "overlap_comm": False, "leaf_module": None}, "fp32", []),
        ({"stage": 3, "stage3_max_live_parameters": 5, "overlap_comm": True}, "fp32", []),
    ],
)
def test_what_has_no_effect_at_a_stage_is_refused(
    zero: dict[str, Any], precision: str, problems: list[str]
) -> None:
    run = load_run("git_base", [f"train.precision={precision}"])
    found = []
    try:
        check_ds_config({"zero_optimization": zero}, run, world_size=8, has_gpu=True)
    except ConfigError as error:
        found = error.problems
    assert len(found) == len(problems)
    assert all(
        text.startswith(f"zero_optimization.{words}") for text, words in zip(found, problems, strict=True)
    )
