"""Every stage of gpu-check with tiny shapes on a CPU, so that none fails for the first time on a GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.gpu import timeline, training
from benchmarks.gpu.shapes import FULL, TINY
from benchmarks.gpu.stages import STAGES
from benchmarks.gpu.tables import with_tables
from git_scale.testing.distributed import run_distributed

ROOT = Path(__file__).parents[1]
MEASURED = {stage.name: stage for stage in STAGES if stage.measure}


def results(topology: Any, device: torch.device, name: str) -> list[dict[str, Any]]:
    measure = MEASURED[name].measure
    assert measure is not None
    return json.loads(json.dumps(list(measure(TINY, device))))


@pytest.fixture(scope="module")
def measured() -> dict[str, list[dict[str, Any]]]:
    return {}


@pytest.mark.distributed
@pytest.mark.parametrize("name", MEASURED)
def test_a_stage_runs(name: str, measured: dict[str, list[dict[str, Any]]]) -> None:
    (found,) = run_distributed(results, 1, name)
    measured[name] = found
    assert found and not all("skipped" in result for result in found)
    for result in found:
        if "images_per_s" in result:
            batch = result["accumulation"] * result["micro_batch"]
            assert result["images_per_s"] == pytest.approx(batch / result["step_s"], rel=0.01, abs=0.06)
        if "mfu" in result:
            assert result["mfu"] > 0
            assert result["last_loss"] < result["first_loss"], "it trains on the one batch that it sees"
        if "busy_share" in result:
            assert 0 < result["busy_share"] <= 1 and result["kernels"] > 100
            assert {"matrix products", "optimizer"} <= result["ms_by_class"].keys()


@pytest.mark.distributed
def test_the_stages_show_what_they_are_for(measured: dict[str, list[dict[str, Any]]]) -> None:
    if measured.keys() != MEASURED.keys():
        pytest.skip("runs after all stages")
    for name, precision in (
        ("large", "fp32"),
        ("large_bf16_gradients", "bf16"),
        ("git2_bf16_gradients", "bf16"),
    ):
        assert {case["gradient_precision"] for case in measured[name]} == {precision}
    (trace,) = (case for case in measured["git2"] if "depthwise_ms" in case)
    assert 0 < trace["depthwise_ms"] < trace["step_ms"] * 10
    assert all(case["depthwise_ms"] == 0 for case in measured["timeline"]), "a ViT has none"
    assert {case["tokens"] for case in measured["attention"]} == {256, 257, 264}
    assert [(case["trainer"], case["compile"]) for case in measured["trainers"]] == [
        ("git_scale", False), ("git_scale", True), ("transformers", False), ("transformers", True),
    ]  # fmt: skip
    assert measured["generation"][0]["captions, same texts"] == "2 of 2"
    here = {"card": "none", "date": "today", "versions": {"torch": "2"}, "commit": "abc", "outcome": "done"}
    report = {"stages": {name: {**here, "results": found} for name, found in measured.items()}}
    text = with_tables((ROOT / "benchmarks" / "README.md").read_text(), report)
    for word in ("depthwise", "transformers", "git2 | 5 | off", "captions, git_scale", "| math | 257 |"):
        assert word in text


def test_the_published_tables_are_those_of_the_results() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    report = json.loads((ROOT / "benchmarks" / "results" / "gpu.json").read_text(encoding="utf-8"))
    assert with_tables(text, report) == text, "python tools/gpu_check.py --tables makes them anew"


def test_a_set_of_stages_takes_at_most_four_minutes_and_what_decides_most_comes_first() -> None:
    assert [stage.set for stage in STAGES] == sorted(stage.set for stage in STAGES)
    for number in (1, 2, 3):
        assert 0 < sum(stage.budget_s for stage in STAGES if stage.set == number) <= 240
    assert STAGES[0].name == "tests"


def test_a_model_whose_states_do_not_fit_is_skipped_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "memory_gib", lambda device: 80.0)
    cpu = torch.device("cpu")
    reason = training.reason_to_skip(training.recipe_run("git2", FULL), cpu)
    assert reason is not None and "5.15B parameters need 96 GiB" in reason and "72 GiB are usable" in reason
    assert training.reason_to_skip(training.recipe_run("git_large", FULL), cpu) is None
    (only,) = MEASURED["git2_bf16_gradients"].measure(FULL, cpu)  # type: ignore[misc]
    assert only["skipped"].startswith("5.15B parameters need 86 GiB")


def test_busy_time_is_a_union() -> None:
    assert timeline.busy_share([(0, 2), (1, 3), (1, 2), (6, 8)]) == 5 / 8
    assert timeline.busy_share([]) == 0


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_TNN", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matrix products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7", "attention"),
        (
            "void at::native::(anonymous namespace)::conv_depthwise2d_forward_kernel<3, c10::BFloat16>",
            "convolution",
        ),
        (
            "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor>",
            "optimizer",
        ),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16>", "norms"),
        ("triton_poi_fused_gelu_0", "element-wise, compiled"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add>", "element-wise"),
        ("void at::native::reduce_kernel<512, 1>", "reductions"),
        ("ncclDevKernel_AllReduce", "collectives"),
        ("a kernel of tomorrow", "other"),
    ],
)
def test_kernels_are_told_apart_by_their_names(kernel: str, kind: str) -> None:
    assert timeline.class_of(kernel) == kind
