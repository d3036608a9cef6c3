"""Our reading of a DeepSpeed configuration against DeepSpeed's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from git_scale.planning.zero_config import read_zero_config, with_zero_stage

DS_CONFIGS = Path(__file__).parents[2] / "ds_configs"


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"overlap_comm": True, "reduce_bucket_size": 1e6},
        {
            "overlap_comm": False,
            "stage3_prefetch_bucket_size": 7,
            "stage3_max_live_parameters": 8,
            "stage3_max_reuse_distance": 9,
            "stage3_param_persistence_threshold": 10,
        },
    ],
)
def test_values_and_defaults_are_deepspeeds(stage: int, given: dict[str, Any]) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    theirs = DeepSpeedZeroConfig(stage=stage, **given)
    ours = read_zero_config({"zero_optimization": {"stage": stage, **given}}, "fp32")
    assert ours.stage == theirs.stage
    assert ours.overlap_comm == theirs.overlap_comm
    assert ours.reduce_bucket_size == theirs.reduce_bucket_size
    assert ours.prefetch_bucket_size == theirs.prefetch_bucket_size
    assert ours.max_live_parameters == theirs.max_live_parameters
    assert ours.max_reuse_distance == theirs.max_reuse_distance
    assert ours.param_persistence_threshold == theirs.param_persistence_threshold
    assert not ours.offload_optimizer
    assert not ours.offload_param


def test_offload_is_seen() -> None:
    zero = read_zero_config(json.loads((DS_CONFIGS / "zero3_offload.json").read_text()), "bf16")
    assert zero.offload_optimizer
    assert zero.offload_param


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_another_stage_is_the_shipped_file(stage: int) -> None:
    assert with_zero_stage({}, stage, "fp32") == json.loads((DS_CONFIGS / f"zero{stage}.json").read_text())


def test_the_same_stage_keeps_its_settings() -> None:
    own = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 5}}
    assert with_zero_stage(own, 2, "fp32") is own
    assert read_zero_config(with_zero_stage(own, 0, "fp32"), "fp32").stage == 0
    assert read_zero_config({}, "bf16").stage == 1  # master weights are kept there in any case
