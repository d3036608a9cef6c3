"""The plan against the memory that the committed GPU benchmark took: no GPU is needed to compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from git_scale.parallel.ds_config import read_ds_config
from git_scale.planning.cluster import accelerator_named, cluster_of
from git_scale.planning.estimate import estimate_setting, setting_of
from git_scale.recipes import load_run

ROOT = Path(__file__).parents[2]
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "gpu.json").read_text())
CASES = [
    case
    for stage in ("base", "large", "large_bf16_gradients", "git2", "git2_bf16_gradients")
    for case in RESULTS["stages"].get(stage, {"results": []})["results"]
    if "mfu" in case and not case["compile"]  # compiled blocks are not modelled
]


def planned_gib(case: dict[str, Any]) -> float:
    run = load_run(
        case["recipe"],
        [
            f"train.micro_batch={case['micro_batch']}",
            f"train.global_batch={case['accumulation'] * case['micro_batch']}",
            f"train.activation_checkpointing={case['activation_checkpointing']}",
            f"data.texts_per_image={case['texts']}",
            f"data.max_text_tokens={case['text_tokens']}",
            f"train.gradient_precision={case['gradient_precision']}",
        ],
    )
    ds_config = read_ds_config(ROOT / "ds_configs" / "zero1.json")
    cluster = cluster_of(accelerator_named("H200"), "bf16", world_size=1, per_node=8)
    return estimate_setting(run, ds_config, cluster, setting_of(run, ds_config)).memory.total / 2**30


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['recipe']}-{case['texts']}")
def test_the_planned_peak_is_what_a_gpu_took(case: dict[str, Any]) -> None:
    assert planned_gib(case) == pytest.approx(case["peak_gib"], rel=0.01)


def test_another_batch_or_checkpointing_would_be_noticed() -> None:
    case = next(case for case in CASES if case["recipe"] == "git_large")
    for change in ({"micro_batch": 120}, {"activation_checkpointing": True}, {"texts": 2}):
        assert planned_gib({**case, **change}) != pytest.approx(case["peak_gib"], rel=0.01)
