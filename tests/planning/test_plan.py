"""What a plan says of states, of times and of settings, against figures worked out by hand."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch

from git_scale.config import RunConfig
from git_scale.errors import ConfigError
from git_scale.formatting import GIB
from git_scale.models.build import build_model
from git_scale.models.git import count_parameters
from git_scale.planning.cluster import Cluster, accelerator_named, cluster_of
from git_scale.planning.local_model import build_local
from git_scale.planning.plan import plan, refuse_if_memory_too_small, with_dividing_micro_batch
from git_scale.planning.report import describe_plan, estimates_table
from git_scale.recipes import load_run

SMALL = [
    "model.encoder.name=vit_tiny_patch16_224",
    "model.encoder.options={depth: 2, embed_dim: 64, num_heads: 4}",
    "model.decoder={layers: 2, width: 64, heads: 4, ffn: 128}",
    "model.vocab_size=500",
    "train.global_batch=64",
    "train.micro_batch=4",
]


def small(*overrides: str) -> RunConfig:
    return load_run("git_base", [*SMALL, *overrides])


def cluster(world_size: int = 8, memory_gib: float = 80.0) -> Cluster:
    h100 = cluster_of(accelerator_named("H100"), "bf16", world_size, per_node=8)
    return Cluster(**{**h100.__dict__, "memory": int(memory_gib * GIB)})


def parameters_of(run: RunConfig) -> int:
    with torch.device("meta"):
        return count_parameters(build_model(run.model))


@pytest.mark.parametrize(
    ("stage", "bytes_per_parameter"),
    # bf16: weight 2, fp32 master 4, two moments 8; ZeRO-1, which 0 is here, and 2 share 12 of them over 8 ranks;
    # ZeRO-3 all, and keeps this rank's part of the gradients, which are summed in fp32: 4
    [(0, 2 + 12 / 8), (1, 2 + 12 / 8), (2, 2 + 12 / 8), (3, (14 + 4) / 8)],
)
def test_states_are_the_known_bytes_per_parameter(stage: int, bytes_per_parameter: float) -> None:
    run = small()
    planned = plan(run, {"zero_optimization": {"stage": stage}}, cluster())
    expected = parameters_of(run) * bytes_per_parameter
    assert planned.own.memory.states == pytest.approx(expected, rel=0.01)


def test_a_larger_batch_and_no_checkpointing_need_more() -> None:
    def peak(*overrides: str) -> int:
        return plan(small("train.precision=fp32", *overrides), {}, cluster()).own.memory.total

    assert peak("train.micro_batch=8") > 1.3 * peak()
    assert peak("train.activation_checkpointing=true") < 0.8 * peak()


def test_a_split_model_has_the_splits_parameters() -> None:
    whole, split = build_local(small()), build_local(small("parallel.tp=2"))
    sizes = [sum(p.numel() for p in local.model.parameters()) for local in (whole, split)]
    assert 0.5 < sizes[1] / sizes[0] < 0.75  # positions and projection stay whole in so small a model


def test_compute_time_is_flops_over_rate() -> None:
    planned = plan(small(), {}, cluster())
    per_rank = planned.flops_per_sample * 64 / 8
    expected = per_rank / (0.33 * 989e12)
    assert planned.own.time.compute == pytest.approx(expected, rel=0.05)
    recomputed = plan(small("train.activation_checkpointing=true"), {}, cluster()).own.time.compute
    assert 1.2 < recomputed / planned.own.time.compute < 1.4  # a further forward pass of the blocks


@pytest.mark.parametrize(("gradient_precision", "size"), [("bf16", 2), ("fp32", 4)])
def test_zero3_moves_the_weights_twice_and_the_gradients(gradient_precision: str, size: int) -> None:
    """Between nodes and without overlap: weights of 2 bytes gathered forward and backward, gradients scattered."""
    apart = {"zero_optimization": {"stage": 3, "overlap_comm": False, "stage3_max_reuse_distance": 0}}
    batch = ("train.global_batch=64", "train.micro_batch=4")
    run, nodes = small(*batch, f"train.gradient_precision={gradient_precision}"), cluster(16)
    nodes = dataclasses.replace(nodes, inter=nodes.intra / 8)
    slow = dataclasses.replace(nodes, inter=nodes.inter / 2)
    quick_s, slow_s = (plan(run, apart, links).own.time.data for links in (nodes, slow))
    moved = (2 * 2 + size) * parameters_of(run) * 15 / 16
    assert slow_s - quick_s == pytest.approx(moved / nodes.intra, rel=0.01)


def test_small_models_pay_zero3_in_collectives() -> None:
    """Each of their parameters is gathered on its own after the update; alone on a device, nothing is exchanged."""
    run = small("train.global_batch=64", "train.micro_batch=4")
    times = {
        (stage, world): plan(run, {"zero_optimization": {"stage": stage}}, cluster(world)).own.time
        for stage in (1, 3)
        for world in (1, 16)
    }
    assert times[3, 16].data > 10 * times[1, 16].data
    assert times[1, 1].data == times[3, 1].data == 0


def test_the_example_of_the_page() -> None:
    """docs/planning.md: git_base on 8 H100s under ZeRO-1, by hand."""
    planned = plan(load_run("git_base"), {"zero_optimization": {"stage": 1}}, cluster())
    memory, time = planned.own.phases[0], planned.own.time
    assert memory is planned.own.memory
    assert memory.states == 153_178_170 * 2 + 19_147_272 * (4 + 8)
    assert memory.gradients == 153_178_170 * 4
    assert memory.communication == 500_000_000 * 4
    assert memory.activations == 64 * 101_052_620 + 2_336
    assert memory.logits == 64 * 39 * 30_522 * 12
    assert memory.total == 10_530_401_244
    assert time.compute == pytest.approx(512 * 168.07e9 / (0.33 * 989e12), rel=1e-4)
    reduced = 6.6e-6 + 14e-6 + 2 * memory.gradients * 7 / 8 / 450e9
    gathered = 6.6e-6 + 7e-6 + 153_178_170 * 2 * 7 / 8 / 450e9
    assert time.data == pytest.approx(reduced + gathered)
    assert planned.utilisation(planned.own) == pytest.approx(4096 * 167.3e9 / 0.2667 / (8 * 989e12), rel=1e-3)


def test_what_does_not_fit_is_refused_with_settings_that_do() -> None:
    run = load_run("git_base", ["train.global_batch=256", "train.micro_batch=32"])
    needed = plan(run, {}, cluster()).own.memory.total / GIB
    with pytest.raises(ConfigError) as caught:
        refuse_if_memory_too_small(plan(run, {}, cluster(memory_gib=1.5 + 0.9 * needed)))
    text = str(caught.value)
    assert text.count("parallel.tp=") == 4  # its own and three others
    with pytest.raises(ConfigError, match="no setting of tp, ZeRO stage"):
        refuse_if_memory_too_small(plan(run, {}, cluster(memory_gib=1.5)))
    refuse_if_memory_too_small(plan(run, {}, cluster()))


def test_options_fit_and_come_in_the_order_of_their_time() -> None:
    planned = plan(small(), {}, cluster())
    times = [estimate.time.total for estimate in planned.fitting]
    assert all(later > 0.98 * earlier for earlier, later in itertools.pairwise(times))
    assert all(estimate.memory.total <= planned.cluster.usable_with_margin for estimate in planned.fitting)
    assert {estimate.setting.tp for estimate in planned.fitting} == {1, 2, 4}  # 4 heads
    assert {estimate.setting.stage for estimate in planned.fitting} == {1, 2, 3}
    assert "this run" in estimates_table(planned, planned.fitting)


def test_the_text_names_the_parts() -> None:
    text = describe_plan(plan(small(), {}, cluster()))
    for part in (
        "model states",
        "activations",
        "logits",
        "communication buffers",
        "left",
        "not a measurement",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.global_batch=60"], "train.global_batch=60 is no multiple"),
        (["parallel.tp=3"], "parallel.tp=3 does not divide the 8 processes"),
        (["parallel.tp=8"], "does not divide the 4 heads"),
    ],
)
def test_what_does_not_divide_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(small(*overrides), {}, cluster())


def test_a_micro_batch_is_lowered_until_it_divides() -> None:
    assert with_dividing_micro_batch(small("train.micro_batch=16"), cluster()).train.micro_batch == 8
    divided = ["parallel.tp=2", "parallel.sequence=true", "train.micro_batch=14", "train.global_batch=48"]
    assert with_dividing_micro_batch(small(*divided), cluster()).train.micro_batch == 12
    with pytest.raises(ConfigError, match=r"divided by parallel.tp=2 .* the 3 images"):
        with_dividing_micro_batch(small(*divided, "train.global_batch=12"), cluster())


def test_known_devices_have_all_figures() -> None:
    h200: Any = accelerator_named("H200")
    assert h200.memory > accelerator_named("H100").memory
    with pytest.raises(ConfigError, match=r"not in accelerators\.yaml"):
        accelerator_named("abacus")
